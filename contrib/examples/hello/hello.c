#include "greeting.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char usage[] = "usage: hello [--version] [NAME...]\n";

static int greet(const char *name)
{
    char *text = greeting(name);
    if (text == NULL) {
        perror("hello");
        return EXIT_FAILURE;
    }
    puts(text);
    free(text);
    return EXIT_SUCCESS;
}

int main(int argc, char **argv)
{
    if (argc == 1)
        return greet("world");
    if (strcmp(argv[1], "--version") == 0) {
        puts("hello " VERSION);
        return EXIT_SUCCESS;
    }
    if (argv[1][0] == '-') {
        fprintf(stderr, "hello: unknown option '%s'\n%s", argv[1], usage);
        return 2;
    }
    for (int i = 1; i < argc; i++)
        if (greet(argv[i]) != EXIT_SUCCESS)
            return EXIT_FAILURE;
    return EXIT_SUCCESS;
}

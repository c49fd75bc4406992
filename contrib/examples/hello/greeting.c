#include "greeting.h"

#include <stdio.h>
#include <stdlib.h>

char *greeting(const char *name)
{
    static const char format[] = "Hello, %s!";
    int length = snprintf(NULL, 0, format, name);
    if (length < 0)
        return NULL;
    char *text = malloc((size_t)length + 1);
    if (text != NULL)
        snprintf(text, (size_t)length + 1, format, name);
    return text;
}

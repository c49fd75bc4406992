#ifndef GREETING_H
#define GREETING_H

/* Gives a greeting of someone as a string of its own, which the caller frees. NULL when out of memory. */
char *greeting(const char *name);

#endif

/* A library that says when it begins; a program that needs two of them, if it is compiled without a name. */
#include <stdio.h>

#ifdef NAME
__attribute__((constructor)) static void begin(void) { fputs(NAME, stderr); }
void SYMBOL(void) {}
#else
void first(void);
void second(void);
int main(void) {
  first();
  second();
  return 0;
}
#endif

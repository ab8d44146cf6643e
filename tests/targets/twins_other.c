/* The second function named "twin"; see twins.c. */
long other_twin(long n);

static __attribute__((noinline, used)) long twin(long n)
{
    return n * 5 + 2;
}

long other_twin(long n)
{
    return twin(n);
}

/* sorter COUNT: sorts numbers and words, and prints what has come of it and how often it has compared. An ordinary
 * program with ordinary functions: pointers to functions, recursion, structs returned, variable arguments, floats. */
#include "common.h"
#include <math.h>
#include <stdint.h>

#define PLAIN __attribute__((noipa))

struct summary { int64_t sum; double mean; int least, greatest; };
struct node { struct node *left, *right; int value; };
static unsigned long compared;

PLAIN static uint32_t next_random(uint32_t *state)
{
    *state = *state * 1664525u + 1013904223u;
    return *state >> 8;
}

PLAIN static int compare(const void *left, const void *right)
{
    compared++;
    int a = *(const int *)left, b = *(const int *)right;
    return (a > b) - (a < b);
}

PLAIN static struct summary summarise(const int *numbers, int count)
{
    struct summary summary = {0, 0, numbers[0], numbers[0]};
    for (int i = 0; i < count; i++) {
        summary.sum += numbers[i];
        summary.least = numbers[i] < summary.least ? numbers[i] : summary.least;
        summary.greatest = numbers[i] > summary.greatest ? numbers[i] : summary.greatest;
    }
    summary.mean = (double)summary.sum / count;
    return summary;
}

PLAIN static struct node *insert(struct node *tree, int value)
{
    if (!tree) {
        tree = calloc(1, sizeof *tree);
        tree->value = value;
    } else if (value < tree->value)
        tree->left = insert(tree->left, value);
    else
        tree->right = insert(tree->right, value);
    return tree;
}

PLAIN static int depth(const struct node *tree)
{
    int left = tree ? depth(tree->left) : 0, right = tree ? depth(tree->right) : 0;
    return tree ? 1 + (left > right ? left : right) : 0;
}

PLAIN static void discard(struct node *tree)
{
    if (tree) {
        discard(tree->left);
        discard(tree->right);
        free(tree);
    }
}

PLAIN static int64_t sum_of(int count, ...)
{
    va_list numbers;
    int64_t sum = 0;
    va_start(numbers, count);
    while (count--)
        sum += va_arg(numbers, int64_t);
    va_end(numbers);
    return sum;
}

PLAIN static const char *kind(int value)
{
    switch (value % 7) {
    case 0: return "zero";
    case 1: return "one";
    case 2: return "two";
    case 3: return "three";
    case 4: return "four";
    case 5: return "five";
    default: return "six";
    }
}

int main(int argc, char **argv)
{
    int count = argc > 1 ? number(argv[1]) : 100;
    uint32_t state = 12345;
    int *numbers = malloc(count * sizeof *numbers);
    struct node *tree = NULL;
    for (int i = 0; i < count; i++)
        tree = insert(tree, numbers[i] = next_random(&state) % 100000);
    qsort(numbers, count, sizeof *numbers, compare);
    struct summary summary = summarise(numbers, count);
    for (int i = 0; i < count; i++)
        printf("%d %s%c", numbers[i], kind(numbers[i]), i % 8 == 7 ? '\n' : ' ');
    printf("\nsum %lld mean %.6f from %d to %d\n", (long long)summary.sum, summary.mean, summary.least, summary.greatest);
    printf("depth %d, variable %lld\n", depth(tree), (long long)sum_of(3, (int64_t)1 << 40, (int64_t)-5, (int64_t)7));
    printf("compared %lu\n", compared);
    discard(tree);
    free(numbers);
    return 3;
}

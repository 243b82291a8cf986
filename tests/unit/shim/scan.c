/*
 * The shim's scanner on its own, for the tests: reads configurations (u32 size in the machine's order, bytes) from
 * stdin and prints, for each, what the shim took out of it: four strings in hexadecimal ("-" for none) and a number.
 */
#define main shim_main
#include "multus.c"
#undef main

static void show(char *text)
{
    putchar(text ? '=' : '-');
    for (const char *at = text; at && *at; at++)
        printf("%02x", (unsigned char)*at);
    putchar(' ');
    free(text);
}

int main(void)
{
    uint32_t size;
    while (fread(&size, sizeof size, 1, stdin) == 1) {
        char *data = malloc(size + 1); /* terminated and not a byte longer, so that a sanitizer sees every step beyond */
        if (!data || fread(data, 1, size, stdin) != size)
            return 1;
        data[size] = '\0';
        conf = (struct conf){.daemon_timeout = -1};
        read_conf((struct scan){data, data + size});
        free(data);
        show(conf.socket_dir);
        show(conf.cni_dir);
        show(conf.cni_version);
        show(conf.name);
        printf("%.17g\n", conf.daemon_timeout);
        fflush(stdout);
    }
    return 0;
}

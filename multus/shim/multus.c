/*
 * multus - the CNI plugin binary that a container runtime executes.
 *
 * It takes no part in networking: it hands the runtime's call (CNI_* variables and the network configuration on
 * stdin) to the daemon's socket, prints the answer and exits with its code. Static C, because the runtime starts it
 * for every call: this takes 1 ms, an interpreter or a Go binary some 12, and the host needs nothing installed.
 *
 * The daemon may be away, as when its pod is being replaced. Then ADD waits for it, bounded, and a DEL is stored
 * on disk, where the daemon finds it: success is never claimed for what nobody will carry out.
 *
 * The frame that travels (and is stored) is described in multus/wire.py.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#ifndef MULTUS_VERSION
#define MULTUS_VERSION "unreleased"
#endif

struct header { /* the numbers are big-endian */
    char magic[8];
    uint32_t first, second;
};
static const char magic[8] = {0, 'M', 'U', 'L', 'T', 'U', 'S', 1};

#define MAX_ENV (256u * 1024)
#define MAX_CONF (4u * 1024 * 1024)
#define MAX_OUTPUT (16u * 1024 * 1024)

#define DEFAULT_SOCKET_DIR "/run/multus/"
#define DEFAULT_CNI_DIR "/var/lib/cni/multus"

/* Error codes of the CNI specification. */
enum { BAD_ENVIRONMENT = 4, IO_FAILURE = 5, BAD_CONTENT = 6, BAD_CONFIG = 7, TRY_AGAIN = 11, NOT_AVAILABLE = 50 };

/* How long a command waits for a daemon that is away, and for the answer of one that is there. */
static const struct command {
    const char *name;
    int64_t away_ms, answer_ms;
    int code; /* what the runtime is told when nobody answers */
} commands[] = {
    {"ADD", 60000, 600000, TRY_AGAIN},
    {"CHECK", 60000, 600000, TRY_AGAIN},
    {"DEL", 2000, 600000, TRY_AGAIN}, /* short: it can be stored instead */
    {"GC", 5000, 600000, TRY_AGAIN},
    {"STATUS", 1000, 60000, NOT_AVAILABLE}, /* polled by the runtime, and "away" is an answer too */
};

struct buffer {
    char *data;
    size_t size, room;
};

struct conf {
    char *socket_dir, *cni_dir, *cni_version, *name; /* NULL when absent */
    double daemon_timeout;                           /* seconds; negative when absent */
};

static struct conf conf = {.daemon_timeout = -1};

/* ------------------------------------------------------------------ memory, output, time */

/* After a call that failed: whether to repeat it. A runtime may have made our end of its pipe non-blocking. */
static bool again(int fd, short events)
{
    if (errno != EAGAIN)
        return errno == EINTR;
    poll(&(struct pollfd){.fd = fd, .events = events}, 1, -1);
    return true;
}

static bool write_all(int fd, const void *data, size_t size)
{
    for (const char *at = data; size > 0;) {
        ssize_t done = write(fd, at, size);
        if (done < 0 && again(fd, POLLOUT))
            continue;
        if (done < 0)
            return false;
        at += done;
        size -= (size_t)done;
    }
    return true;
}

static void *need(void *memory)
{
    static const char text[] = "{\"cniVersion\":\"1.0.0\",\"code\":999,\"msg\":\"multus: out of memory\"}\n";
    if (!memory) {
        write_all(STDOUT_FILENO, text, sizeof text - 1);
        _exit(1);
    }
    return memory;
}

static void reserve(struct buffer *b, size_t more)
{
    if (b->room - b->size >= more)
        return;
    b->room = b->room * 2 > b->size + more ? b->room * 2 : b->size + more;
    b->data = need(realloc(b->data, b->room));
}

static void append(struct buffer *b, const void *data, size_t size)
{
    reserve(b, size);
    if (size > 0)
        memcpy(b->data + b->size, data, size);
    b->size += size;
}

/* A JSON string. Bytes beyond ASCII may not be UTF-8 in what we quote, so they are not let through. */
static void append_json(struct buffer *b, const char *text)
{
    append(b, "\"", 1);
    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;
        char escaped[8];
        if (c == '"' || c == '\\')
            append(b, (char[]){'\\', (char)c}, 2);
        else if (c < 0x20)
            append(b, escaped, (size_t)snprintf(escaped, sizeof escaped, "\\u%04x", c));
        else
            append(b, c < 0x7f ? (char *)&c : "?", 1);
    }
    append(b, "\"", 1);
}

/* Ends with a CNI error: `details` says what to do about the message that follows it. */
__attribute__((noreturn, format(printf, 3, 4)))
static void fail(int code, const char *details, const char *format, ...)
{
    char message[1024], number[32];
    struct buffer out = {0};
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    append(&out, "{\"cniVersion\":", 14);
    append_json(&out, conf.cni_version && *conf.cni_version ? conf.cni_version : "1.0.0");
    append(&out, number, (size_t)snprintf(number, sizeof number, ",\"code\":%d,\"msg\":", code));
    append_json(&out, message);
    append(&out, ",\"details\":", 11);
    append_json(&out, details);
    append(&out, "}\n", 2);
    write_all(STDOUT_FILENO, out.data, out.size);
    exit(1);
}

static int64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* ------------------------------------------------------------------ the configuration
 * Four strings and a number are needed out of its top level. The scanner steps over everything else without
 * judging it: what is wrong with the rest, the daemon says better. It does not recurse, so depth costs nothing. */

struct scan {
    const char *at, *end;
};

static char skip_space(struct scan *s)
{
    while (s->at < s->end && memchr(" \t\r\n", *s->at, 4))
        s->at++;
    return s->at < s->end ? *s->at : '\0';
}

/* From a string's opening quote to its closing one. */
static bool skip_string(struct scan *s)
{
    for (s->at++; s->at < s->end && *s->at != '"'; s->at++)
        if (*s->at == '\\' && s->end - s->at > 1)
            s->at++;
    return s->at < s->end;
}

/* To the comma or brace behind a value. */
static bool skip_value(struct scan *s)
{
    for (size_t depth = 0; s->at < s->end; s->at++) {
        char c = *s->at;
        if (depth == 0 && (c == ',' || c == '}'))
            return true;
        if (c == '"' ? !skip_string(s) : depth == 0 && c == ']')
            return false;
        depth += c == '{' || c == '[';
        depth -= c == '}' || c == ']';
    }
    return false;
}

/* Four hexadecimal digits, or -1. */
static int32_t hex4(const char *at, const char *end)
{
    char digits[5] = {0};
    if (end - at < 4)
        return -1;
    memcpy(digits, at, 4);
    return strspn(digits, "0123456789abcdefABCDEF") == 4 ? (int32_t)strtol(digits, NULL, 16) : -1;
}

static char *put_utf8(char *out, uint32_t c)
{
    static const unsigned char lead[] = {0, 0xc0, 0xe0, 0xf0};
    int more = (c >= 0x80) + (c >= 0x800) + (c >= 0x10000);
    *out++ = (char)(lead[more] | c >> 6 * more);
    while (more-- > 0)
        *out++ = (char)(0x80 | (c >> 6 * more & 0x3f));
    return out;
}

/* The text between a string's quotes, or NULL when it is malformed or holds NUL, at which a path would end. */
static char *decode(const char *at, const char *end)
{
    static const char names[] = "\"\\/bfnrt", meanings[] = "\"\\/\b\f\n\r\t";
    char *text = need(malloc((size_t)(end - at) + 1)), *out = text; /* an escape is never shorter than its meaning */
    while (at < end && (unsigned char)*at >= 0x20) {
        char escape = *at == '\\' && end - at > 1 ? at[1] : '\0';
        const char *simple = escape ? strchr(names, escape) : NULL;
        int32_t c, low;
        if (*at != '\\') {
            *out++ = *at++;
        } else if (simple) {
            *out++ = meanings[simple - names];
            at += 2;
        } else if (escape == 'u' && (c = hex4(at + 2, end)) > 0) {
            at += 6;
            if (c >> 10 == 0xd800 >> 10 && end - at > 1 && at[0] == '\\' && at[1] == 'u' &&
                (low = hex4(at + 2, end)) >> 10 == 0xdc00 >> 10) {
                c = 0x10000 + ((c & 0x3ff) << 10) + (low & 0x3ff);
                at += 6;
            }
            out = put_utf8(out, c >> 11 == 0xd800 >> 11 ? 0xfffd : (uint32_t)c); /* as encoding/json does */
        } else {
            break;
        }
    }
    *out = '\0';
    if (at == end)
        return text;
    free(text);
    return NULL;
}

/* From a string's opening quote to behind its closing one. */
static char *take_string(struct scan *s)
{
    const char *begin = s->at + 1;
    return skip_string(s) ? decode(begin, s->at++) : NULL;
}

/* Keeps a value that is wanted. Keys count in any case, and the last of several, as for upstream's reader (Go).
 * stdin's buffer is terminated: strtod(3) stays inside. */
static void keep(const char *key, struct scan value)
{
    struct {
        const char *key;
        char **into;
    } strings[] = {{"daemonSocketDir", &conf.socket_dir},
                   {"cniDir", &conf.cni_dir},
                   {"cniVersion", &conf.cni_version},
                   {"name", &conf.name}};
    if (!strcasecmp(key, "daemonTimeout") && isdigit((unsigned char)*value.at))
        conf.daemon_timeout = strtod(value.at, NULL);
    for (size_t i = 0; i < sizeof strings / sizeof *strings; i++) {
        if (strcasecmp(key, strings[i].key))
            continue;
        free(*strings[i].into);
        *strings[i].into = *value.at == '"' ? take_string(&value) : NULL;
    }
}

static void read_conf(struct scan s)
{
    if (skip_space(&s) != '{')
        return;
    do {
        s.at++;
        if (skip_space(&s) != '"')
            return;
        char *key = take_string(&s);
        bool colon = skip_space(&s) == ':';
        if (colon)
            s.at++;
        skip_space(&s);
        struct scan value = s;
        bool complete = colon && skip_value(&s);
        if (complete && key)
            keep(key, value);
        free(key);
        if (!complete)
            return;
    } while (*s.at == ',');
}

/* ------------------------------------------------------------------ the request */

static struct buffer read_stdin(void)
{
    struct buffer b = {0};
    for (;;) {
        reserve(&b, 16384);
        ssize_t got = read(STDIN_FILENO, b.data + b.size, b.room - b.size - 1);
        if (got < 0 && again(STDIN_FILENO, POLLIN))
            continue;
        if (got < 0)
            fail(IO_FAILURE, "", "cannot read the network configuration from stdin: %s", strerror(errno));
        if (got == 0)
            break;
        b.size += (size_t)got;
        if (b.size > MAX_CONF)
            fail(BAD_CONTENT, "", "the network configuration on stdin is larger than %u bytes", MAX_CONF);
    }
    b.data[b.size] = '\0';
    return b;
}

/* Names this one call, over every repetition of it: how the daemon knows an ADD that it has begun already. */
static void make_nonce(char nonce[33])
{
    struct timespec t;
    uint32_t random = 0; /* the time and the process id make it unique; this keeps two machines apart */
    clock_gettime(CLOCK_REALTIME, &t);
    if (getrandom(&random, sizeof random, GRND_NONBLOCK) < 0)
        random = (uint32_t)now_ms();
    snprintf(nonce, 33, "%016llx%08x%08x", (unsigned long long)t.tv_sec * 1000000000 + (unsigned long long)t.tv_nsec,
             (unsigned)getpid(), (unsigned)random);
}

static struct buffer make_request(const struct buffer *input, const char *nonce)
{
    extern char **environ;
    struct buffer env = {0}, frame = {0};
    for (char **entry = environ; *entry; entry++)
        if (!strncmp(*entry, "CNI_", 4) && strchr(*entry, '='))
            append(&env, *entry, strlen(*entry) + 1);
    append(&env, "MULTUS_NONCE=", 13);
    append(&env, nonce, strlen(nonce) + 1);
    if (env.size > MAX_ENV)
        fail(BAD_ENVIRONMENT, "", "the CNI_ variables are larger than %u bytes", MAX_ENV);
    struct header header = {.first = htonl((uint32_t)env.size), .second = htonl((uint32_t)input->size)};
    memcpy(header.magic, magic, sizeof magic);
    append(&frame, &header, sizeof header);
    append(&frame, env.data, env.size);
    append(&frame, input->data, input->size);
    free(env.data);
    return frame;
}

/* ------------------------------------------------------------------ the daemon */

static char why[256]; /* the last reason for not having an answer, for the error message */

static bool away(const char *what, int error)
{
    snprintf(why, sizeof why, "%s%s%s", what, error ? ": " : "", error ? strerror(error) : "");
    return false;
}

/* A connected socket, or -1 when the daemon is away. Somebody else's socket is never written to. */
static int reach(const struct sockaddr_un *address, int64_t patience_ms)
{
    struct ucred peer = {0};
    socklen_t size = sizeof peer;
    struct timeval limit = {.tv_sec = patience_ms / 1000, .tv_usec = patience_ms % 1000 * 1000};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    /* bounds connect(2), which waits when the daemon's queue is full, and send(2) */
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit))
        fail(IO_FAILURE, "", "cannot make a socket: %s", strerror(errno));
    if (connect(fd, (const struct sockaddr *)address, sizeof *address)) {
        int error = errno;
        close(fd);
        if (error != ENOENT && error != ECONNREFUSED && error != ECONNRESET && error != EAGAIN && error != EINTR)
            fail(IO_FAILURE, "the runtime must run as root", "%s: %s", address->sun_path, strerror(error));
        return away(error == ENOENT ? "there is no socket" : "connect", error == ENOENT ? 0 : error), -1;
    }
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) || (peer.uid != 0 && peer.uid != geteuid()))
        fail(IO_FAILURE, "find out which process holds this socket, for instance with ss -xlp",
             "%s belongs to user %u, not to root", address->sun_path, (unsigned)peer.uid);
    return fd;
}

static bool receive(int fd, void *into, size_t size, int64_t until)
{
    for (char *at = into; size > 0;) {
        struct pollfd ready = {.fd = fd, .events = POLLIN};
        int64_t left = until - now_ms();
        if (left <= 0)
            return away("it has taken the request, but does not answer", 0);
        if (poll(&ready, 1, (int)left) <= 0)
            continue; /* the time is over, or a signal: looked at above */
        ssize_t got = recv(fd, at, size, 0);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return away("it closed the connection before it had answered", got ? errno : 0);
        at += got;
        size -= (size_t)got;
    }
    return true;
}

/* Sends the request and waits for the answer. False when the daemon went away in between. */
static bool exchange(int fd, const struct buffer *request, struct buffer *answer, int *code, int64_t until)
{
    struct header header;
    for (size_t sent = 0; sent < request->size;) {
        ssize_t done = send(fd, request->data + sent, request->size - sent, MSG_NOSIGNAL);
        if (done < 0 && errno != EINTR)
            return away("send", errno);
        sent += done > 0 ? (size_t)done : 0;
    }
    if (!receive(fd, &header, sizeof header, until))
        return false;
    uint32_t status = ntohl(header.first), size = ntohl(header.second);
    if (memcmp(header.magic, magic, sizeof magic) || status > 255 || size > MAX_OUTPUT)
        return away("what answers is not this release's multusd; an older multus-daemon, perhaps", 0);
    answer->size = 0;
    reserve(answer, size);
    answer->size = size;
    *code = (int)status;
    return receive(fd, answer->data, size, until);
}

/* Repeats the exchange until it succeeds or the daemon has been away for too long. To repeat an ADD is safe:
 * a daemon that starts first undoes what it left half done, and it knows the call by its nonce. */
static bool call(const struct sockaddr_un *address, const struct command *command, int64_t patience_ms,
                 const struct buffer *request, struct buffer *answer, int *code)
{
    int64_t begin = now_ms(), away_until = begin + patience_ms;
    for (int64_t pause = 5;; pause = pause * 2 < 100 ? pause * 2 : 100) {
        int64_t tried = now_ms(), left = away_until - tried;
        int fd = reach(address, left > 10 ? left : 10);
        if (fd >= 0) {
            int64_t connected = now_ms();
            bool answered = exchange(fd, request, answer, code, begin + command->answer_ms);
            close(fd);
            if (answered)
                return true;
            away_until += now_ms() - connected; /* it was there: that time was not spent waiting for it */
        }
        int64_t now = now_ms();
        if (now + pause >= away_until || now >= begin + command->answer_ms)
            return false;
        nanosleep(&(struct timespec){.tv_nsec = pause * 1000000}, NULL);
    }
}

/* ------------------------------------------------------------------ a DEL that waits on disk */

/* Whether the text is safe as a part of a file's name: the CNI specification's container ids, and what a kernel
 * takes as an interface's name, are (less letters beyond ASCII). */
static bool nameable(const char *text, size_t limit)
{
    size_t size = strlen(text);
    if (size == 0 || size > limit || text[0] == '.')
        return false;
    for (; *text; text++)
        if (!isalnum((unsigned char)*text) && !strchr("_.-@+", *text))
            return false;
    return true;
}

/* The daemon makes this directory: where it is, a daemon will carry out what lies in it. */
static int open_spool(void)
{
    struct stat s;
    struct buffer path = {0};
    const char *base = conf.cni_dir && *conf.cni_dir ? conf.cni_dir : DEFAULT_CNI_DIR;
    append(&path, base, strlen(base));
    append(&path, "/spool", 7);
    int dir = open(path.data, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (dir < 0 || fstat(dir, &s))
        fail(TRY_AGAIN, "has multusd ever run on this node? it makes this directory at its start",
             "multusd is away (%s), and the DEL cannot be kept for it in %s: %s", why, path.data, strerror(errno));
    if ((s.st_uid != 0 && s.st_uid != geteuid()) || s.st_mode & (S_IWGRP | S_IWOTH))
        fail(TRY_AGAIN, "this directory must belong to root, and nobody else may write in it",
             "multusd is away (%s), and the DEL cannot be kept for it in %s: owner or mode is wrong", why, path.data);
    free(path.data);
    return dir;
}

static void spool(const struct buffer *request, const char *nonce)
{
    const char *container = getenv("CNI_CONTAINERID"), *ifname = getenv("CNI_IFNAME");
    char name[256], temporary[256];
    if (!container || !isalnum((unsigned char)*container) || !nameable(container, 128))
        fail(BAD_ENVIRONMENT, "", "CNI_CONTAINERID is absent or not a container id");
    if (!ifname || !nameable(ifname, 15))
        fail(BAD_ENVIRONMENT, "", "CNI_IFNAME is absent or not the name of an interface");
    snprintf(name, sizeof name, "%s-%s.%s.del", container, ifname, nonce);
    snprintf(temporary, sizeof temporary, ".%s.tmp", nonce);

    int dir = open_spool();
    int fd = openat(dir, temporary, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    /* After success has been answered, neither a crash nor a power cut may lose it. */
    if (fd < 0 || !write_all(fd, request->data, request->size) || fsync(fd) || close(fd) ||
        renameat(dir, temporary, dir, name) || fsync(dir)) {
        int error = errno;
        unlinkat(dir, temporary, 0);
        fail(TRY_AGAIN, "is the disk full or read-only?",
             "multusd is away (%s), and the DEL cannot be kept for it: %s", why, strerror(error));
    }
    /* The daemon watches the directory. Should it have come back meanwhile, it has the file already. */
}

/* ------------------------------------------------------------------ */

static const struct command *find_command(void)
{
    const char *name = getenv("CNI_COMMAND");
    for (size_t i = 0; name && i < sizeof commands / sizeof *commands; i++)
        if (!strcmp(name, commands[i].name))
            return &commands[i];
    fail(BAD_ENVIRONMENT, "a container runtime starts this program; for people there is multusctl",
         "CNI_COMMAND is not one of ADD, DEL, CHECK, STATUS, GC, VERSION");
}

static struct sockaddr_un socket_address(void)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    const char *dir = conf.socket_dir && *conf.socket_dir ? conf.socket_dir : DEFAULT_SOCKET_DIR;
    const char *slash = dir[strlen(dir) - 1] == '/' ? "" : "/";
    int size = snprintf(address.sun_path, sizeof address.sun_path, "%s%smultus.sock", dir, slash);
    if (*dir != '/' || size < 0 || (size_t)size >= sizeof address.sun_path)
        fail(BAD_CONFIG, "it is the directory of multusd's socket, /run/multus/ by default",
             "daemonSocketDir is not an absolute path of at most 95 bytes: %s", dir);
    return address;
}

/* How long to wait for a daemon that is away: the command's time, or what the operator says where that is less.
 * ADD and CHECK, for which that setting is meant, follow it upwards too. */
static int64_t patience(const struct command *command)
{
    const char *text = getenv("MULTUS_DAEMON_TIMEOUT");
    double seconds = conf.daemon_timeout;
    if (seconds < 0 && text && isdigit((unsigned char)*text))
        seconds = strtod(text, NULL);
    if (!(seconds >= 0 && seconds <= 3600))
        return command->away_ms;
    int64_t wanted = (int64_t)(seconds * 1000);
    return wanted < command->away_ms || command->away_ms == 60000 ? wanted : command->away_ms;
}

int main(int argc, char **argv)
{
    if (argc > 1 && !strcmp(argv[1], "--version"))
        return fputs("multus " MULTUS_VERSION "\n", stdout) < 0 || fflush(stdout); /* multusctl knows the program by it */

    /* A runtime that closed stdin or stdout would have the socket take that number, and be sent our output. */
    int fd;
    while ((fd = open("/dev/null", O_RDWR | O_CLOEXEC)) >= 0 && fd <= STDERR_FILENO)
        continue;
    close(fd);

    const char *name = getenv("CNI_COMMAND");
    if (name && !strcmp(name, "VERSION"))
        return puts("{\"cniVersion\":\"1.1.0\",\"supportedVersions\":"
                    "[\"0.1.0\",\"0.2.0\",\"0.3.0\",\"0.3.1\",\"0.4.0\",\"1.0.0\",\"1.1.0\"]}") < 0 || fflush(stdout);
    const struct command *command = find_command();
    struct buffer input = read_stdin();
    read_conf((struct scan){input.data, input.data + input.size});
    struct sockaddr_un address = socket_address();

    char nonce[33];
    make_nonce(nonce);
    struct buffer request = make_request(&input, nonce), answer = {0};
    int code = 1;
    int64_t patience_ms = patience(command);
    if (call(&address, command, patience_ms, &request, &answer, &code))
        return write_all(STDOUT_FILENO, answer.data, answer.size) ? code : 1;
    if (!strcmp(command->name, "DEL")) {
        spool(&request, nonce);
        return 0;
    }
    fail(command->code,
         "is the multusd pod of its DaemonSet running on this node? its logs, and multusctl doctor here, say more",
         "network %s: multusd does not answer at %s: %s", conf.name ? conf.name : "without a name", address.sun_path,
         why);
}

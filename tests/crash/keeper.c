/* Runs a command and sees to it that nothing of it is left.
 *
 *   keeper REPORT LEASH KILL AFTER_US LINGER_MS COMMAND [ARGUMENT...]
 *   keeper REPORT LEASH KILL AFTER_US LINGER_MS @PID
 *
 * REPORT     descriptor of a pipe: "main STATUS" as soon as the command's own process has ended (wait(2)'s status), then
 *            "left N": how many processes it had left behind that did not end by themselves within LINGER_MS
 * LEASH      descriptor of a pipe whose other end the harness holds: when that is closed, everything is killed
 * @PID       the command is a child already: whoever became this keeper has forked it (warm.py)
 * KILL       after AFTER_US microseconds: "process" kills the command's own process, "tree" all of it, "none" nothing
 *
 * Orphans come to the keeper (PR_SET_CHILD_SUBREAPER), whatever sessions and groups they made, so it knows them all.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

struct process {
    pid_t pid, parent;
    int is_ours;
};

static int parent_of(pid_t pid, pid_t *parent) {
    char path[32], text[512];
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    ssize_t length = read(fd, text, sizeof text - 1);
    close(fd);
    if (length <= 0)
        return -1;
    text[length] = 0;
    const char *rest = strrchr(text, ')'); /* the name before it may hold anything */
    return rest && sscanf(rest, ") %*c %d", parent) == 1 ? 0 : -1;
}

/* Kill every descendant that there is now; how many. */
static int kill_all(void) {
    static struct process found[1 << 16];
    int count = 0, killed = 0, changed = 1;
    DIR *proc = opendir("/proc");
    for (struct dirent *entry; proc && (entry = readdir(proc)) && count < 1 << 16;) {
        pid_t pid = atoi(entry->d_name);
        if (pid > 0 && parent_of(pid, &found[count].parent) == 0) {
            found[count].pid = pid;
            found[count++].is_ours = 0;
        }
    }
    if (proc)
        closedir(proc);
    while (changed) {
        changed = 0;
        for (int i = 0; i < count; i++) {
            if (found[i].is_ours)
                continue;
            int ours = found[i].parent == getpid();
            for (int j = 0; j < count && !ours; j++)
                ours = found[j].is_ours && found[j].pid == found[i].parent;
            if (ours) {
                found[i].is_ours = changed = 1;
                kill(found[i].pid, SIGKILL);
                killed++;
            }
        }
    }
    return killed;
}

static long long now_us(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000LL + time.tv_nsec / 1000;
}

/* Reap what has ended; 0 once there is no child any more. */
static int reap(pid_t main_process, int report, int *is_over) {
    int status;
    pid_t pid;
    while ((pid = waitpid(-1, &status, WNOHANG | __WALL)) > 0)
        if (pid == main_process) {
            *is_over = 1;
            dprintf(report, "main %d\n", status);
        }
    return pid == 0;
}

static void start(char **command) {
    char pid[16];
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    snprintf(pid, sizeof pid, "%d", getpid());
    setenv("CRASH_MAIN", pid, 1);
    const char *shim = getenv("CRASH_SHIM"); /* not LD_PRELOAD: it is for the command, not for this process */
    if (shim)
        setenv("LD_PRELOAD", shim, 1);
    unsetenv("CRASH_SHIM");
    execvp(command[0], command);
    perror(command[0]);
    _exit(127);
}

int main(int count, char **arguments) {
    if (count < 7)
        return 2;
    int report = atoi(arguments[1]), leash = atoi(arguments[2]);
    int kills_tree = strcmp(arguments[3], "tree") == 0, kills = kills_tree || strcmp(arguments[3], "process") == 0;
    long long after = atoll(arguments[4]), linger = atoll(arguments[5]) * 1000;
    fcntl(report, F_SETFD, FD_CLOEXEC);
    fcntl(leash, F_SETFD, FD_CLOEXEC);
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    sigset_t ends;
    sigemptyset(&ends);
    sigaddset(&ends, SIGCHLD);
    sigprocmask(SIG_BLOCK, &ends, NULL);
    int ended = signalfd(-1, &ends, SFD_NONBLOCK | SFD_CLOEXEC);

    pid_t main_process = arguments[6][0] == '@' ? atoi(arguments[6] + 1) : fork();
    if (main_process == 0)
        start(arguments + 6);
    long long deadline = now_us() + after;
    int is_over = 0, left = 0;
    while (reap(main_process, report, &is_over)) {
        if (is_over && kills >= 0) { /* from now on the deadline is that of the orphans */
            kills = -1;
            deadline = now_us() + linger;
        }
        long long wait = kills ? deadline - now_us() : 1000000;
        if (wait <= 0) {
            if (kills > 0 && !kills_tree) {
                kill(main_process, SIGKILL);
            } else {
                int killed = kill_all();
                left = kills < 0 && !left ? killed : left;
            }
            deadline = now_us() + 1000; /* what was forked meanwhile */
            continue;
        }
        struct pollfd watched[2] = {{leash, POLLIN, 0}, {ended, POLLIN, 0}};
        struct timespec timeout = {wait / 1000000, wait % 1000000 * 1000};
        ppoll(watched, 2, &timeout, NULL);
        if (watched[0].revents) {
            kill_all();
            poll(NULL, 0, 1);
        }
        struct signalfd_siginfo info;
        while (read(ended, &info, sizeof info) > 0)
            ;
    }
    dprintf(report, "left %d\n", left);
    return 0;
}

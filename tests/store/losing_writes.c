/* A disk that keeps what has been flushed, and nothing else, below the folder $LOSING_WRITES.
 *
 * Every fsync and fdatasync of a file copies it, as it then is, to <folder>.kept/file-<inode>; every fsync of a folder
 * writes down the names in it to <folder>.kept/folder-<inode>. What the power leaves is put together from those, by
 * lost_writes.py. A copy appears under its name all at once, so whoever stops the process meets a whole one.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static _Noreturn void give_up(const char *what) {
    perror(what);
    abort();
}

static void keep_file(int from, int to) {
    char buffer[65536];
    off_t at = 0;
    ssize_t got;
    while ((got = pread(from, buffer, sizeof buffer, at)) > 0) {
        if (write(to, buffer, (size_t)got) != got) give_up("write");
        at += got;
    }
    if (got < 0) give_up("pread");
}

static void keep_names(const char *path, int to) {
    DIR *folder = opendir(path);
    if (!folder) give_up(path);
    for (struct dirent *each; (each = readdir(folder));)
        if (strcmp(each->d_name, ".") && strcmp(each->d_name, "..")) dprintf(to, "%lu %s\n", (unsigned long)each->d_ino, each->d_name);
    closedir(folder);
}

static int flush(int descriptor) {
    const char *root = getenv("LOSING_WRITES");
    char link[64], path[PATH_MAX], kept[PATH_MAX + 64], temporary[PATH_MAX + 128];
    struct stat facts;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (fstat(descriptor, &facts)) return -1;
    if (length < 0) give_up(link);
    path[length] = 0;
    size_t whole = root ? strlen(root) : 0;
    if (!whole || strncmp(path, root, whole) || (path[whole] && path[whole] != '/')) return 0;
    int is_folder = S_ISDIR(facts.st_mode);
    snprintf(kept, sizeof kept, "%s.kept/%s-%lu", root, is_folder ? "folder" : "file", (unsigned long)facts.st_ino);
    snprintf(temporary, sizeof temporary, "%s.%d.part", kept, gettid());
    int to = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (to < 0) give_up(temporary);
    if (is_folder) keep_names(path, to);
    else keep_file(descriptor, to);
    close(to);
    if (rename(temporary, kept)) give_up("rename");
    return 0;
}

int fsync(int descriptor) { return flush(descriptor); }
int fdatasync(int descriptor) { return flush(descriptor); }

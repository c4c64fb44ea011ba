/* The least a durable save can cost: the calls themselves, and nothing around them.
 *
 * Write a temporary file, fsync it, keep the former file as .bak (link and rename), rename the
 * temporary file over it, fsync the folder. No lock, no check, no encoding.
 */

#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

int save(const char *folder, const char *path, const char *temporary, const char *bak,
         const char *bak_temporary, const char *data, size_t size)
{
    int file = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (file < 0)
        return 1;
    while (size > 0) {
        ssize_t written = write(file, data, size);
        if (written < 0)
            return 2;
        data += written;
        size -= (size_t)written;
    }
    if (fsync(file) != 0 || close(file) != 0)
        return 3;
    if (link(path, bak_temporary) == 0 && rename(bak_temporary, bak) != 0)
        return 4;
    if (rename(temporary, path) != 0)
        return 5;
    int directory = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (directory < 0 || fsync(directory) != 0 || close(directory) != 0)
        return 6;
    return 0;
}

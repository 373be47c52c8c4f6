// This file has what files are on Linux: modes, owners, and opening without being led astray.

package files

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"sojourn.example/agent/internal/account"
)

// create makes a new file. Not through a link that somebody laid there, and not one that is there already.
func create(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
}

// reopen opens a partial file to go on. One that belongs to somebody else would be theirs at its end: it is refused.
func reopen(path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	info, err := file.Stat()
	if err != nil {
		file.Close()
		return nil, err
	}
	fsuid, _ := unix.SetfsuidRetUid(-1)
	if !info.Mode().IsRegular() || info.Sys().(*syscall.Stat_t).Uid != uint32(fsuid) {
		file.Close()
		return nil, errors.New("the partial file is not ours")
	}
	return file, nil
}

// openToRead opens without waiting for the other end of a named pipe.
func openToRead(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
}

func fileMode(bits uint32) fs.FileMode {
	mode := fs.FileMode(bits & 0o777)
	for bit, flag := range map[uint32]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if bits&bit != 0 {
			mode |= flag
		}
	}
	return mode
}

func setMode(file *os.File, mode fs.FileMode) error { return file.Chmod(mode) }

func modeAndOwner(info fs.FileInfo) (mode, owner string) {
	stat := info.Sys().(*syscall.Stat_t)
	return fmt.Sprintf("%04o", stat.Mode&0o7777), account.NameOf(stat.Uid)
}

func isDiskFull(err error) bool { return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) }

func isNotDirectory(err error) bool { return errors.Is(err, unix.ENOTDIR) }

// This file has what files are on Windows.

package files

import (
	"errors"
	"io/fs"
	"os"

	"golang.org/x/sys/windows"
)

func create(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
}

func reopen(path string) (*os.File, error) { return os.OpenFile(path, os.O_RDWR, 0) }

func openToRead(path string) (*os.File, error) { return os.Open(path) }

// Permission bits mean nothing here: a file has the rights of its folder.
func fileMode(uint32) fs.FileMode { return 0o600 }

func setMode(*os.File, fs.FileMode) error { return nil }

func modeAndOwner(fs.FileInfo) (mode, owner string) { return "", "" }

func isDiskFull(err error) bool {
	return errors.Is(err, windows.ERROR_DISK_FULL) || errors.Is(err, windows.ERROR_HANDLE_DISK_FULL)
}

// A path through a file is ERROR_PATH_NOT_FOUND here, which is fs.ErrNotExist already.
func isNotDirectory(err error) bool { return errors.Is(err, windows.ERROR_DIRECTORY) }

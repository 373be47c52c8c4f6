package removal

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/windows"
)

// deletes runs the one who deletes on a folder that holds something.
func deletes(t *testing.T, prepare func(folder, mark string)) (folder string) {
	t.Helper()
	system, err := windows.GetSystemDirectory()
	if err != nil {
		t.Fatal(err)
	}
	folder = filepath.Join(t.TempDir(), "sojourn 0123456789ab")
	mark := filepath.Join(folder, "end-1")
	if err := os.MkdirAll(filepath.Join(folder, "inner"), 0o700); err != nil {
		t.Fatal(err)
	}
	prepare(folder, mark)
	command := exec.Command(filepath.Join(system, "cmd.exe"))
	command.SysProcAttr = &syscall.SysProcAttr{CmdLine: deletion(system, folder, mark)}
	if err := command.Run(); err != nil {
		t.Error(err)
	}
	return folder
}

func TestTheFolderIsDeletedWhileItIsTheSame(t *testing.T) {
	folder := deletes(t, func(_, mark string) {
		if err := os.WriteFile(mark, nil, 0o600); err != nil {
			t.Error(err)
		}
	})
	if _, err := os.Lstat(folder); !errors.Is(err, os.ErrNotExist) {
		t.Error("it is still there", err)
	}
	folder = deletes(t, func(string, string) {})
	if _, err := os.Lstat(folder); err != nil {
		t.Error("another agent's folder was deleted", err)
	}
}

package ownership

import (
	"os"
	"syscall"
	"testing"
)

func TestTheFolderIsRootsAlone(t *testing.T) {
	folder := t.TempDir()
	if err := os.Chmod(folder, 0o777); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		if err := os.Lchown(folder, 65534, 65534); err != nil {
			t.Fatal(err)
		}
	}
	if err := Take(folder); err != nil {
		t.Fatal(err)
	}
	info, err := os.Lstat(folder)
	if err != nil {
		t.Fatal(err)
	}
	if owner := info.Sys().(*syscall.Stat_t); info.Mode().Perm() != 0o700 || int(owner.Uid) != os.Geteuid() || os.Geteuid() == 0 && owner.Gid != 0 {
		t.Errorf("it has mode %o, and is of %d:%d", info.Mode().Perm(), owner.Uid, owner.Gid)
	}
}

package atboot

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

const run = "0123456789ab"

func inFolder(t *testing.T) {
	t.Helper()
	before := Folder
	Folder = filepath.Join(t.TempDir(), "tmpfiles.d")
	t.Cleanup(func() { Folder = before })
}

func TestWords(t *testing.T) {
	for path, want := range map[string]string{
		"/tmp/sojourn-0123456789ab": `"/tmp/sojourn-0123456789ab"`,
		"/home/a b/100%":            `"/home/a b/100%%"`,
		`/x/*[?"\`:                  `"/x/\\*\\[\\?\"\\\\"`,
	} {
		if got := word(path); got != want {
			t.Errorf("%s is %s, want %s", path, got, want)
		}
	}
}

func TestWriteAndRemove(t *testing.T) {
	inFolder(t)
	for range 2 {
		made, err := Write(run, "/tmp/"+run)
		if !made || err != nil {
			t.Error(made, err)
		}
		if again, err := Write(run, "/tmp/"+run); again || err != nil {
			t.Error(again, err)
		}
		if entries, _ := os.ReadDir(Folder); len(entries) != 1 || RunOf(Path(run)) != run {
			t.Error(entries)
		}
		if err := Remove(run, made); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(Folder); !os.IsNotExist(err) {
			t.Error("a folder that was made is left", err)
		}
	}
	if err := os.WriteFile(Folder, nil, 0o600); err != nil { // nothing can be put there
		t.Fatal(err)
	}
	if made, err := Write(run, "/tmp/x"); made || err == nil {
		t.Error(made, err)
	}
	if err := os.Remove(Folder); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(Folder, 0o755); err != nil {
		t.Fatal(err)
	}
	if made, err := Write(run, "/tmp/x"); made || err != nil {
		t.Error(made, err)
	}
	for range 2 {
		if err := Remove(run, false); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(Folder); err != nil {
		t.Error("somebody else's folder was removed", err)
	}
	for _, name := range []string{"sojourn-0123456789ab", "sojourn-x.conf", "other.conf", "xsojourn-0123456789ab.conf"} {
		if got := RunOf(name); got != "" {
			t.Errorf("%s is of run %s", name, got)
		}
	}
}

// The real tool reads what is written: a folder of an awkward name goes, its neighbours stay.
func TestRealTool(t *testing.T) {
	tool, err := exec.LookPath("systemd-tmpfiles")
	if err != nil || os.Geteuid() != 0 {
		t.Skip("needs root and systemd-tmpfiles")
	}
	inFolder(t)
	place := t.TempDir()
	folder := filepath.Join(place, `a %b*["\`)
	neighbour := filepath.Join(place, `a %bc["\`)
	for _, f := range []string{folder, neighbour} {
		if err := os.MkdirAll(filepath.Join(f, "inner"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Write(run, folder); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		arguments []string
		left      bool
	}{{[]string{"--remove", Path(run)}, true}, {[]string{"--boot", "--remove", Path(run)}, false}} {
		if text, err := exec.Command(tool, step.arguments...).CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, text)
		}
		for _, path := range []string{folder, Path(run)} {
			if _, err := os.Stat(path); (err == nil) != step.left {
				t.Errorf("after %v: %s: %v", step.arguments, path, err)
			}
		}
	}
	if _, err := os.Stat(neighbour); err != nil {
		t.Error("a neighbour was removed", err)
	}
}

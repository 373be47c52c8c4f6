package account

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sojourn.example/agent/internal/catalogue"
)

func TestParse(t *testing.T) {
	a := parse("postgres:x:115:122:PostgreSQL administrator,,,:/var/lib/postgresql:/bin/bash")
	if a == nil || a.Name != "postgres" || a.UID != 115 || a.GID != 122 || a.Home != "/var/lib/postgresql" || a.Shell != "/bin/bash" {
		t.Errorf("%+v", a)
	}
	if a := parse("x:x:1:1:::"); a.Home != "/" || a.Shell != "/bin/sh" {
		t.Errorf("%+v", a)
	}
	for _, line := range []string{"", "+::::::", "# comment", "a:b:c:d:e:f:g", "a:x:1:1::/"} {
		if a := parse(line); a != nil {
			t.Errorf("%q gave %+v", line, a)
		}
	}
}

func TestParseGroups(t *testing.T) {
	text := "root:x:0:\nsudo:x:27:alice,bob\nbob:x:1001:\nusers:x:100:alicebob,bob\nbroken\n"
	if got := parseGroups(text, &Account{Name: "bob", GID: 1001}); !slices.Equal(got, []uint32{1001, 27, 100}) {
		t.Error(got)
	}
}

func TestParseVariable(t *testing.T) {
	for line, want := range map[string]string{
		"LANG=C.UTF-8\n":         "LANG=C.UTF-8",
		`PATH="/usr/bin:/bin"`:   "PATH=/usr/bin:/bin",
		"export A='b c'":         "A=b c",
		"# LANG=C":               "",
		"":                       "",
		"no assignment":          "",
		"#A=b":                   "",
		`QUOTED="one`:            `QUOTED="one`,
		"  SPACED=around  \n":    "SPACED=around",
		"EMPTY=":                 "EMPTY=",
		"two words=are no name=": "",
	} {
		if got := parseVariable(line); got != want {
			t.Errorf("%q gave %q, want %q", line, got, want)
		}
	}
}

func TestLookup(t *testing.T) {
	root, err := Lookup("root")
	if err != nil || root.UID != 0 || root.Home == "" {
		t.Fatal(root, err)
	}
	if byNumber, err := Lookup("0"); err != nil || byNumber.Name != "root" {
		t.Error(byNumber, err)
	}
	for _, name := range []string{"", "no-such-user", "-G", "a:b", "4000000000"} {
		_, err := Lookup(name)
		if known, ok := errors.AsType[*catalogue.Error](err); !ok || known.Code != "SD-702" {
			t.Errorf("%q: %v", name, err)
		}
	}
	if !slices.Contains(root.Environment(), "HOME="+root.Home) {
		t.Error(root.Environment())
	}
}

func TestDoLendsRightsToOneThreadOnly(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: only root may lend another user's rights")
	}
	nobody, err := Lookup("nobody")
	if err != nil {
		t.Fatal(err)
	}
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for range 50 {
		err := Do(nobody, func() error {
			if uid, _ := unix.SetfsuidRetUid(-1); uint32(uid) != nobody.UID {
				t.Error("the work has user id", uid)
			}
			_, err := os.ReadFile(secret)
			return err
		})
		if !errors.Is(err, os.ErrPermission) {
			t.Error(err)
		}
		if _, err := os.ReadFile(secret); err != nil {
			t.Error(err)
		}
	}
	// No thread of the process keeps the rights; the last one may still be ending.
	for deadline := time.Now().Add(20 * time.Second); ; {
		kept := lentThreads()
		if len(kept) == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(kept)
		}
		time.Sleep(time.Millisecond)
	}
}

func lentThreads() (kept []string) {
	tasks, _ := filepath.Glob("/proc/self/task/*/status")
	for _, task := range tasks {
		raw, err := os.ReadFile(task)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(raw)) {
			if fields := strings.Fields(line); len(fields) == 5 && fields[0] == "Uid:" && fields[4] != "0" {
				kept = append(kept, task)
			}
		}
	}
	return kept
}

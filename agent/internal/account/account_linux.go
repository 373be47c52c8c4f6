// Package account looks up the users of a Linux target, their groups and login environment, and lends their rights to a piece of work.
package account

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"sojourn.example/agent/internal/catalogue"
)

// Account is a user of the target.
type Account struct {
	Name   string
	UID    uint32
	GID    uint32
	Groups []uint32
	Home   string
	Shell  string
}

// Lookup finds a user by name, or by number where no user has that name.
func Lookup(name string) (*Account, error) {
	if name == "" || strings.ContainsAny(name, ":\n\x00") || strings.HasPrefix(name, "-") {
		return nil, unknown(name)
	}
	found := find(name, func(a *Account) bool { return a.Name == name })
	if found == nil {
		if uid, err := strconv.ParseUint(name, 10, 32); err == nil {
			found = find(name, func(a *Account) bool { return a.UID == uint32(uid) })
		}
	}
	if found == nil {
		return nil, unknown(name)
	}
	found.Groups = groups(found)
	return found, nil
}

// Current is the user that the agent runs as.
func Current() *Account {
	uid := uint32(os.Geteuid())
	if found := find(strconv.Itoa(int(uid)), func(a *Account) bool { return a.UID == uid }); found != nil {
		return found
	}
	return &Account{Name: strconv.Itoa(int(uid)), UID: uid, GID: uint32(os.Getegid()), Home: "/", Shell: "/bin/sh"}
}

// NameOf is the name of a user id, or the number where it has none.
func NameOf(uid uint32) string {
	number := strconv.FormatUint(uint64(uid), 10)
	if found := find(number, func(a *Account) bool { return a.UID == uid }); found != nil {
		return found.Name
	}
	return number
}

func unknown(name string) error { return catalogue.New("SD-702", "user", name) }

// find looks in /etc/passwd, and then asks the name service, which knows directories (LDAP, SSSD) too.
func find(key string, is func(*Account) bool) *Account {
	if file, err := os.Open("/etc/passwd"); err == nil {
		defer file.Close()
		if found := search(file, is); found != nil {
			return found
		}
	}
	if onlyFiles("passwd") {
		return nil
	}
	text, err := tool("getent", "passwd", key)
	if err != nil {
		return nil
	}
	return search(bytes.NewReader(text), is)
}

func search(passwd io.Reader, is func(*Account) bool) *Account {
	lines := bufio.NewScanner(passwd)
	for lines.Scan() {
		if a := parse(lines.Text()); a != nil && is(a) {
			return a
		}
	}
	return nil
}

// parse reads a line of passwd(5).
func parse(line string) *Account {
	fields := strings.Split(line, ":")
	if len(fields) != 7 {
		return nil
	}
	uid, err1 := strconv.ParseUint(fields[2], 10, 32)
	gid, err2 := strconv.ParseUint(fields[3], 10, 32)
	if err1 != nil || err2 != nil || fields[0] == "" {
		return nil
	}
	a := &Account{Name: fields[0], UID: uint32(uid), GID: uint32(gid), Home: fields[5], Shell: fields[6]}
	if a.Home == "" {
		a.Home = "/"
	}
	if a.Shell == "" {
		a.Shell = "/bin/sh" // passwd(5)
	}
	return a
}

// groups gives the user's groups as initgroups(3) would: from the file where the name service says that is all.
func groups(a *Account) []uint32 {
	if !onlyFiles("group") {
		if text, err := tool("id", "-G", "--", a.Name); err == nil {
			var all []uint32
			for _, field := range strings.Fields(string(text)) {
				if gid, err := strconv.ParseUint(field, 10, 32); err == nil {
					all = append(all, uint32(gid))
				}
			}
			if len(all) > 0 {
				return all
			}
		}
	}
	raw, _ := os.ReadFile("/etc/group")
	return parseGroups(string(raw), a)
}

func parseGroups(text string, a *Account) []uint32 {
	all := []uint32{a.GID}
	for line := range strings.Lines(text) {
		fields := strings.Split(strings.TrimRight(line, "\n"), ":")
		if len(fields) != 4 {
			continue
		}
		gid, err := strconv.ParseUint(fields[2], 10, 32)
		if err != nil || uint32(gid) == a.GID {
			continue
		}
		for member := range strings.SplitSeq(fields[3], ",") {
			if member == a.Name {
				all = append(all, uint32(gid))
				break
			}
		}
	}
	return all
}

// onlyFiles tells whether nsswitch.conf(5) names nothing for the database but local files.
func onlyFiles(database string) bool {
	raw, err := os.ReadFile("/etc/nsswitch.conf")
	if err != nil {
		return true // as in musl, and glibc's default
	}
	for line := range strings.Lines(string(raw)) {
		rest, ok := strings.CutPrefix(strings.TrimSpace(line), database+":")
		if !ok {
			continue
		}
		for _, source := range strings.Fields(rest) {
			if source != "files" && source != "compat" && source != "systemd" && !strings.HasPrefix(source, "[") {
				return false
			}
		}
		return true
	}
	return true
}

func tool(name string, arguments ...string) ([]byte, error) {
	command := exec.Command(name, arguments...)
	command.Env = []string{"PATH=" + rootPath, "LC_ALL=C"}
	return command.Output()
}

const (
	rootPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	userPath = "/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games"
)

// Environment is what the user would have after a login: the service's own variables mean nothing to a task.
func (a *Account) Environment() []string {
	path := userPath
	if a.UID == 0 {
		path = rootPath
	}
	all := []string{"HOME=" + a.Home, "USER=" + a.Name, "LOGNAME=" + a.Name, "SHELL=" + a.Shell, "PATH=" + path}
	// As pam_env(8) does for a login; the last file that names a variable wins.
	for _, file := range []string{"/etc/locale.conf", "/etc/default/locale", "/etc/environment"} {
		raw, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(raw)) {
			if variable := parseVariable(line); variable != "" {
				all = append(all, variable)
			}
		}
	}
	return all
}

// parseVariable reads a line of environment(5), as pam_env does.
func parseVariable(line string) string {
	line = strings.TrimSpace(line)
	line = strings.TrimSpace(strings.TrimPrefix(line, "export "))
	name, value, ok := strings.Cut(line, "=")
	if !ok || name == "" || strings.HasPrefix(name, "#") || strings.ContainsAny(name, " \t") {
		return ""
	}
	if len(value) >= 2 && (value[0] == '"' || value[0] == '\'') && value[len(value)-1] == value[0] {
		value = value[1 : len(value)-1]
	}
	return name + "=" + value
}

// Folder is where a login of the user begins; empty for the agent's own account, which has its folder.
func (a *Account) Folder() string {
	if a == nil {
		return ""
	}
	return a.Home
}

// Credential is what the kernel needs to start a process as the user; nil where the agent is that user already.
func (a *Account) Credential() *syscall.Credential {
	if a == nil || int(a.UID) == os.Geteuid() {
		return nil
	}
	return &syscall.Credential{Uid: a.UID, Gid: a.GID, Groups: a.Groups}
}

// Do runs the work with the file rights of the user; a nil account is the agent's own. Only what happens in work itself,
// not in goroutines that it starts, has them: the rights are those of one thread, which ends with the work, so that they
// cannot leak into another piece of work whatever happens.
func Do(a *Account, work func() error) error {
	if a == nil || int(a.UID) == os.Geteuid() {
		return work()
	}
	result := make(chan error)
	go lent(a, work, result)
	return <-result
}

func lent(a *Account, work func() error, result chan<- error) {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		// The main thread cannot end before the process does: while it is held here, another one is taken.
		defer runtime.UnlockOSThread()
		inner := make(chan error)
		go lent(a, work, inner)
		result <- <-inner
		return
	}
	// Never unlocked: the thread goes with the goroutine.
	result <- func() (err error) {
		defer func() {
			if r := recover(); r != nil { // nobody above could catch it: it would end the agent
				err = fmt.Errorf("panic: %v", r)
			}
		}()
		if err := lend(a); err != nil {
			return err
		}
		return work()
	}()
}

// lend sets this thread's file system identity (credentials(7)). The raw calls are for one thread, unlike those of syscall.
func lend(a *Account) error {
	list := a.Groups
	if len(list) == 0 {
		list = []uint32{a.GID}
	}
	if err := threadGroups(list); err != nil {
		return err
	}
	if err := unix.Setfsgid(int(a.GID)); err != nil {
		return err
	}
	if err := unix.Setfsuid(int(a.UID)); err != nil {
		return err
	}
	// setfsuid(2) does not report failure; it gives the previous id, so that asking again tells.
	if now, _ := unix.SetfsuidRetUid(-1); now != int(a.UID) {
		return errors.New("this user's rights cannot be taken on")
	}
	if now, _ := unix.SetfsgidRetGid(-1); now != int(a.GID) {
		return errors.New("this user's group cannot be taken on")
	}
	return nil
}

// This file starts and kills process trees on Linux.

package process

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"sojourn.example/agent/internal/account"
	"sojourn.example/agent/internal/catalogue"
)

// tree is a process that leads a session of its own, in a control group of its own where the agent may make one.
type tree struct {
	process *os.Process
	group   *group // nil: none can be had; then descendants are found by parent and session
}

// setting is all that the beginning of a process depends on.
type setting struct {
	who         *account.Account
	directory   string
	environment []string
	arguments   []string
	program     string
	terminal    *os.File // nil: none
}

func settle(r *Request) (s *setting, err error) {
	who := account.Current()
	if r.User != "" {
		if who, err = account.Lookup(r.User); err != nil {
			return nil, err
		}
	}
	directory := r.Directory
	if directory == "" {
		directory = who.Home
		if account.Do(who, func() error { return mustBeDirectory(directory) }) != nil {
			directory = "/" // as login(1) does
		}
	} else if err := account.Do(who, func() error { return mustBeDirectory(directory) }); err != nil {
		return nil, catalogue.New("SD-706", "path", directory, "detail", err.Error())
	}
	environment := who.Environment()
	for _, v := range r.Environment {
		if v.Name == "" || strings.ContainsAny(v.Name, "=\x00") || strings.ContainsRune(v.Value, 0) {
			return nil, catalogue.New("SD-504", "detail", "an environment variable's name or value is malformed")
		}
		environment = append(environment, v.Name+"="+v.Value)
	}
	environment = lastWins(environment)
	arguments := r.Arguments
	var theirs *os.File
	if len(arguments) == 0 {
		arguments = []string{"/bin/sh", "-c", r.CommandLine}
		if r.terminal != nil {
			theirs = r.terminal.theirs
			arguments[2] = "exec 3>&-\n" + r.CommandLine // it has come with its terminal, which it is to have as /dev/tty alone
		}
	}
	program, err := lookPath(arguments[0], directory, environment)
	if err != nil {
		return nil, startError(arguments[0], err)
	}
	return &setting{who, directory, environment, arguments, program, theirs}, nil
}

func start(r *Request, _, handle string, files [3]*os.File, coming func(id int)) (child, error) {
	s, err := settle(r)
	if err != nil {
		return nil, err
	}
	t, err := s.start(groupPrefix+handle, files, coming)
	if err != nil {
		return nil, startError(s.arguments[0], err)
	}
	return t, nil
}

func (s *setting) start(group string, files [3]*os.File, coming func(id int)) (*tree, error) {
	attributes := &os.ProcAttr{
		Dir: s.directory, Env: s.environment, Files: files[:],
		Sys: &syscall.SysProcAttr{Setsid: true, Credential: s.who.Credential()},
	}
	if s.terminal != nil {
		attributes.Files = append(attributes.Files, s.terminal)
		attributes.Sys.Setctty, attributes.Sys.Ctty = true, len(files)
	}
	t := &tree{group: newGroup(group)}
	if t.group != nil {
		attributes.Sys.UseCgroupFD, attributes.Sys.CgroupFD = true, int(t.group.folder.Fd())
		coming(0)
	}
	var err error
	t.process, err = os.StartProcess(s.program, s.arguments, attributes)
	if err != nil && t.group != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EACCES) && !errors.Is(err, unix.ENOEXEC) {
		// Kernels before 5.7 cannot start a process in a group: it is moved there, a moment late.
		attributes.Sys.UseCgroupFD = false
		if t.process, err = os.StartProcess(s.program, s.arguments, attributes); err == nil && t.group.add(t.process.Pid) != nil {
			t.group.remove()
			t.group = nil
		}
	}
	if err != nil {
		if t.group != nil {
			t.group.remove()
		}
		return nil, err
	}
	if t.group == nil {
		coming(t.process.Pid)
	}
	return t, nil
}

func mustBeDirectory(path string) error {
	info, err := os.Stat(path + "/.") // the dot takes the right to enter, as chdir(2) does
	if err != nil {
		if p, ok := errors.AsType[*os.PathError](err); ok {
			return p.Err
		}
		return err
	}
	if !info.IsDir() {
		return unix.ENOTDIR
	}
	return nil
}

// lastWins drops variables that a later one of the same name overrides.
func lastWins(variables []string) []string {
	seen := make(map[string]int, len(variables))
	var kept []string
	for _, v := range variables {
		name, _, _ := strings.Cut(v, "=")
		if i, ok := seen[name]; ok {
			kept[i] = v
			continue
		}
		seen[name] = len(kept)
		kept = append(kept, v)
	}
	return kept
}

// lookPath finds a program as a shell of the process would: by the PATH that the process gets, not the agent's.
func lookPath(program, directory string, environment []string) (string, error) {
	if strings.Contains(program, "/") {
		return program, nil
	}
	for _, v := range environment {
		path, ok := strings.CutPrefix(v, "PATH=")
		if !ok {
			continue
		}
		for _, folder := range filepath.SplitList(path) {
			if !filepath.IsAbs(folder) {
				folder = filepath.Join(directory, folder)
			}
			candidate := filepath.Join(folder, program)
			if info, err := os.Stat(candidate); err == nil && !info.IsDir() && info.Mode()&0o111 != 0 {
				return candidate, nil
			}
		}
	}
	return "", exec.ErrNotFound
}

func (t *tree) wait() int64 {
	state, err := t.process.Wait()
	if err != nil {
		return lost
	}
	return exitCode(state.Sys().(syscall.WaitStatus))
}

// lost is the exit code of a process whose own nobody knows.
const lost = 255

func exitCode(status syscall.WaitStatus) int64 {
	if status.Signaled() {
		return 128 + int64(status.Signal())
	}
	return int64(status.ExitStatus())
}

func (t *tree) signal(name string, all bool) error {
	number := map[string]unix.Signal{Interrupt: unix.SIGINT, Terminate: unix.SIGTERM, Kill: unix.SIGKILL}[name]
	if !all {
		if err := t.process.Signal(number); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return err
		}
		return nil
	}
	if number == unix.SIGKILL {
		t.kill()
		return nil
	}
	for _, id := range t.members() {
		_ = unix.Kill(id, number)
	}
	return nil
}

// members are the processes of the tree.
func (t *tree) members() []int {
	if t.group != nil {
		return t.group.members()
	}
	return descendants(t.process.Pid)
}

// kill ends the tree. Members are stopped first: one that is stopped cannot start another while we look.
func (t *tree) kill() {
	if t.group != nil && t.group.kill() {
		return
	}
	stopped := make(map[int]bool)
	for range 20 {
		again := false
		for _, id := range t.members() {
			if !stopped[id] {
				stopped[id] = true
				again = true
				_ = unix.Kill(id, unix.SIGSTOP)
			}
		}
		if !again {
			break
		}
	}
	_ = t.process.Kill()
	for id := range stopped {
		if id != t.process.Pid {
			_ = unix.Kill(id, unix.SIGKILL)
		}
	}
}

func (t *tree) processID() int { return t.process.Pid }

// commandProgram names the program that runs a command line: its own first word may be a variable's value.
func commandProgram(string) string { return "sh" }

func (t *tree) forget() {
	if t.group != nil {
		t.group.remove()
	}
}

// KillTree ends the tree of a process that an agent which is no more has started. The caller holds the process, so that its id is
// nobody else's.
func KillTree(handle string, id int) {
	if own := ownGroup(); own != "" {
		// A warm interpreter's process had its group before it had a handle.
		for _, path := range []string{filepath.Join(own, groupPrefix+handle), groupOf(strconv.Itoa(id))} {
			if filepath.Dir(path) == own && strings.HasPrefix(filepath.Base(path), groupPrefix) && (&group{path: path}).kill() {
				return
			}
		}
	}
	for _, one := range append([]int{id}, descendants(id)...) {
		_ = unix.Kill(one, unix.SIGKILL)
	}
}

// Leader gives the process with which a tree began that an agent which is no more has started, by its control group; 0: it has ended.
func Leader(handle string) int {
	own := ownGroup()
	if own == "" {
		return 0
	}
	ids := (&group{path: filepath.Join(own, groupPrefix+handle)}).members()
	if i := slices.IndexFunc(ids, leads); i >= 0 {
		return ids[i]
	}
	return 0
}

// leads tells whether a process leads its session, as that does with which a tree begins.
func leads(id int) bool {
	session, err := unix.Getsid(id)
	return err == nil && session == id
}

// MayRun tells whether a process may yet begin, or run, whose beginning was announced without its id.
func MayRun(handle string) bool {
	_, err := os.Lstat(filepath.Join(ownGroup(), groupPrefix+handle))
	return err == nil
}

// descendants finds a session leader's tree in /proc: all that is in its session, and all that descends from those.
// A grandchild that made a session of its own and whose parent has ended is missed; a control group misses nothing.
func descendants(leader int) []int {
	all := processes()
	in := map[int]bool{leader: true}
	for grew := true; grew; {
		grew = false
		for _, e := range all {
			if !in[e.id] && (in[e.parent] || e.session == leader) {
				in[e.id] = true
				grew = true
			}
		}
	}
	var ids []int
	for _, e := range all {
		if in[e.id] && e.id != os.Getpid() {
			ids = append(ids, e.id)
		}
	}
	return ids
}

// session gives the processes of a session.
func session(leader int) (ids []int) {
	for _, e := range processes() {
		if e.session == leader {
			ids = append(ids, e.id)
		}
	}
	return ids
}

// entry is a process of the target's.
type entry struct{ id, parent, session int }

// processes gives all that /proc has, but those that have ended and were not waited for yet.
func processes() (all []entry) {
	names, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, name := range names {
		raw, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		// The command's name is in parentheses and may hold any character, parentheses too (proc(5)).
		before, _, _ := bytes.Cut(raw, []byte(" ("))
		end := bytes.LastIndexByte(raw, ')')
		if end < 0 {
			continue
		}
		fields := bytes.Fields(raw[end+1:])
		if len(fields) < 4 || fields[0][0] == 'Z' {
			continue
		}
		id, _ := strconv.Atoi(string(before))
		parent, _ := strconv.Atoi(string(fields[1]))
		session, _ := strconv.Atoi(string(fields[3]))
		all = append(all, entry{id, parent, session})
	}
	return all
}

// group is a control group (version 2) below the unit's own.
type group struct {
	path   string
	folder *os.File
}

const groupPrefix = "execution-"

// newGroup makes a control group of a name for a tree, or gives nil where that cannot be done: no cgroup2, or not ours to divide.
func newGroup(name string) *group {
	own := ownGroup()
	if own == "" {
		return nil
	}
	path := filepath.Join(own, name)
	if os.Mkdir(path, 0o755) != nil {
		return nil
	}
	folder, err := os.Open(path)
	if err != nil {
		_ = os.Remove(path)
		return nil
	}
	return &group{path, folder}
}

// ownGroup is the folder of the agent's control group where that is a unit of the agent's own, else "".
func ownGroup() string {
	if path := groupOf("self"); strings.HasPrefix(filepath.Base(path), "sojourn-") {
		return path
	}
	return ""
}

// groupOf is the folder of a process's control group (version 2); "": none is known.
func groupOf(process string) string {
	raw, err := os.ReadFile("/proc/" + process + "/cgroup")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(raw)) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			if mount := unifiedMount(); mount != "" {
				return filepath.Join(mount, path)
			}
		}
	}
	return ""
}

// unifiedMount is where control groups of version 2 are; "": nowhere.
func unifiedMount() string {
	for _, mount := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} { // unified, or hybrid
		var s unix.Statfs_t
		if unix.Statfs(mount, &s) == nil && s.Type == unix.CGROUP2_SUPER_MAGIC {
			return mount
		}
	}
	return ""
}

func (g *group) add(id int) error {
	return os.WriteFile(filepath.Join(g.path, "cgroup.procs"), []byte(strconv.Itoa(id)), 0)
}

func (g *group) members() (ids []int) {
	raw, _ := os.ReadFile(filepath.Join(g.path, "cgroup.procs"))
	for _, field := range bytes.Fields(raw) {
		if id, err := strconv.Atoi(string(field)); err == nil && id > 0 {
			ids = append(ids, id)
		}
	}
	return ids
}

// kill ends all members at once, where the kernel can (5.14).
func (g *group) kill() bool {
	return os.WriteFile(filepath.Join(g.path, "cgroup.kill"), []byte("1"), 0) == nil
}

// remove removes an empty group. One with a process in it stays: that process is meant to go on.
func (g *group) remove() {
	if g.folder != nil {
		g.folder.Close()
		g.folder = nil
	}
	_ = os.Remove(g.path)
}

// Outlive gives what still runs a place outside of the unit, or the unit would stay listed for as long as they run.
func Outlive() {
	patience, cancel := context.WithTimeout(context.Background(), leavePatience)
	defer cancel()
	for _, g := range ownGroups(groupPrefix) {
		g.leaveUnit(patience)
		g.remove() // where it is a moment too early, systemd removes it with the unit
	}
}

// EndWarm ends the interpreters that an agent which is no more has kept warm; what they have begun goes on.
func EndWarm() {
	for _, g := range ownGroups(warmPrefix) {
		if !g.kill() {
			for _, id := range g.members() {
				_ = unix.Kill(id, unix.SIGKILL)
			}
		}
		g.remove() // where it is a moment too early, systemd removes it with the unit
	}
}

// ownGroups are the groups of a prefix below the unit's own.
func ownGroups(prefix string) (groups []*group) {
	own := ownGroup()
	if own == "" {
		return nil
	}
	paths, _ := filepath.Glob(filepath.Join(own, prefix+"*"))
	for _, path := range paths {
		groups = append(groups, &group{path: path})
	}
	return groups
}

const (
	// leavePatience bounds all of that: what comes after it, the rules above all, must not wait for a system bus that hangs.
	leavePatience = 5 * time.Second
	// leaveTries is how often a tree is looked at whose processes come and go while they are moved.
	leaveTries = 50
	// scopeTries is how often a scope is asked for: in vain where its process has just ended, and where there is none to be had.
	scopeTries = 10
)

// leaveUnit moves the tree to a scope, which is gone with the last of them. systemd makes it with one process alone: it refuses a list in
// which one has ended by the time that it looks, and in a shell's loop one always has. The others follow by the kernel's own word, until
// none is left behind: one that a process has begun before it was moved is here still.
func (g *group) leaveUnit(patience context.Context) {
	var scope []string
	asked := 0
	for range leaveTries {
		ids := g.members()
		if len(ids) == 0 || patience.Err() != nil {
			return
		}
		if len(scope) == 0 {
			if asked++; asked > scopeTries {
				return
			}
			if scope = scopeOf(patience, ids[max(0, slices.IndexFunc(ids, leads))]); len(scope) == 0 {
				continue
			}
		}
		for _, id := range ids {
			if err := (&group{path: scope[0]}).add(id); errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) {
				scope = nil // all that was there has ended, and the scope with it
				break
			}
			for _, other := range scope[1:] {
				_ = (&group{path: other}).add(id)
			}
		}
	}
}

// scopeOf makes a scope of a process, through systemd's own tools, waits until it is there, and gives its control groups, that of version 2
// first; none: it has ended, or there is no scope to be had.
func scopeOf(patience context.Context, id int) []string {
	name := "daemon-" + strconv.Itoa(id) + "-" + strconv.Itoa(os.Getpid()) + ".scope" // one of an earlier agent may have had a process of this id
	if exec.CommandContext(patience, "busctl", "call", "org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager",
		"StartTransientUnit", "ssa(sv)a(sa(sv))", name, "fail",
		"3", "PIDs", "au", "1", strconv.Itoa(id), "Description", "s", "Started by a deployment", "CollectMode", "s", "inactive-or-failed", "0",
	).Run() != nil {
		return nil
	}
	_ = exec.CommandContext(patience, "systemctl", "start", name).Run() // it is being started already: this waits for that
	shown, _ := exec.CommandContext(patience, "systemctl", "show", "--property=ControlGroup", name).Output()
	path := strings.TrimPrefix(strings.TrimSpace(string(shown)), "ControlGroup=")
	mount := unifiedMount()
	if path == "" || mount == "" {
		return nil
	}
	ids := (&group{path: filepath.Join(mount, path)}).members()
	if len(ids) == 0 { // one in which nothing ever was would stay
		_ = exec.CommandContext(patience, "systemctl", "stop", name).Run()
		return nil
	}
	places := []string{filepath.Join(mount, path)}
	raw, _ := os.ReadFile("/proc/" + strconv.Itoa(ids[0]) + "/cgroup")
	for line := range strings.Lines(string(raw)) {
		// Where versions 1 and 2 are there both, a unit has its place in each (cgroups(7)).
		if fields := strings.SplitN(strings.TrimSpace(line), ":", 3); len(fields) == 3 && fields[1] != "" && filepath.Base(fields[2]) == name {
			places = append(places, filepath.Join("/sys/fs/cgroup", strings.TrimPrefix(fields[1], "name="), fields[2]))
		}
	}
	return places
}

// anonymousFile makes a file in the folder that no name leads to.
func anonymousFile(folder string) (*os.File, error) {
	file, err := os.CreateTemp(folder, "spool-")
	if err != nil {
		return nil, err
	}
	_ = os.Remove(file.Name())
	return file, nil
}

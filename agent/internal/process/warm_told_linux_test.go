package process

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// ran runs a program and tells how: by what, its exit code and output.
func (w *warming) ran(warm bool, program string, more func(*Request)) (*warmed, string) {
	w.t.Helper()
	p := w.start(warm, program, more)
	s := p.Await(w.t.Context(), long, nil)
	if !s.Ended {
		w.t.Fatal("it has not ended")
	}
	by, is := p.child.(*warmed)
	if is != warm {
		w.t.Errorf("warm: %v, but %T", warm, p.child)
	}
	got := output(w.t, p, s)
	if err := w.table.Release(p); err != nil {
		w.t.Error(err)
	}
	return by, fmt.Sprintf("%d|%s|%s", s.ExitCode, got[0], strings.TrimPrefix(got[1], "Killed\n"))
}

// TestWarmIsToldProgramsOfAnySize: in a message what there is room for in one, else on standard input, and the module finds nothing there.
func TestWarmIsToldProgramsOfAnySize(t *testing.T) {
	w := newWarming(t)
	module := "from ansible.module_utils import basic\nimport hashlib, sys\n" +
		"print(len(basic._ANSIBLE_ARGS), hashlib.sha1(basic._ANSIBLE_ARGS.encode()).hexdigest(), repr(sys.stdin.read()))"
	bare := program(t, module, "", nil)
	before, _, after := archiveIn([]byte(bare), nil)
	own := len(before) + 1 + len(after)
	in := func(params string) string { return strings.Replace(bare, "params=''", "params='"+params+"'", 1) }
	for _, c := range []struct {
		name string
		size int // of the program, but for its zip
		told bool
	}{
		{"small", own, true}, {"59 kB", 59 << 10, true}, {"about the most", maximumTold - 512, true}, {"one more than a message", maximumTold + 1, false},
		{"as much as a message", maximumTold, false}, {"200 kB", 200 << 10, false}, {"2 MB", 2 << 20, false},
	} {
		for _, filling := range []string{"x", "ä"} {
			room := c.size - own
			params := strings.Repeat(filling, room/len(filling)) + strings.Repeat("y", room%len(filling))
			text := in(params)
			_, cold := w.ran(false, text, nil)
			for range 2 {
				by, warm := w.ran(true, text, nil)
				if warm != cold || !strings.HasPrefix(warm, "0|") {
					t.Errorf("%s: cold %q, warm %q", c.name, cold, warm)
				}
				if by != nil && by.told != c.told {
					t.Errorf("%s: told in a message: %v", c.name, by.told)
				}
			}
		}
	}
	// What comes before the zip may be as long.
	for _, size := range []int{100, 61 << 10, 300 << 10} {
		text := strings.Replace(bare, "    import sys\n", "    import sys\n    print(len('"+strings.Repeat("z", size)+"'))\n", 1)
		_, cold := w.ran(false, text, nil)
		if _, warm := w.ran(true, text, nil); warm != cold || !strings.HasPrefix(warm, "0|"+strconv.Itoa(size)) {
			t.Errorf("%d before: cold %.200q, warm %.200q", size, cold, warm)
		}
	}
	// Bytes that are no UTF-8.
	for _, text := range []string{in("\xff\xfe"), in("\xff" + strings.Repeat("x", 70<<10))} {
		_, cold := w.ran(false, text, nil)
		if _, warm := w.ran(true, text, nil); warm[:2] != cold[:2] || warm[0] == '0' || strings.Contains(warm, "SyntaxError") != strings.Contains(cold, "SyntaxError") {
			t.Errorf("no UTF-8: cold %.300q, warm %.300q", cold, warm)
		}
	}
}

// TestWarmIsToldBesideALongPath: the order's own line takes room in the message as well.
func TestWarmIsToldBesideALongPath(t *testing.T) {
	w := newWarming(t)
	folder := t.TempDir()
	for range 4 {
		folder = filepath.Join(folder, strings.Repeat("<", 255)) // in JSON six characters each
	}
	if err := os.MkdirAll(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	bare := program(t, "import os\nfrom ansible.module_utils import basic\nprint(len(basic._ANSIBLE_ARGS), os.getcwd())", "", nil)
	before, _, after := archiveIn([]byte(bare), nil)
	text := strings.Replace(bare, "params=''", "params='"+strings.Repeat("x", maximumTold-len(before)-1-len(after))+"'", 1)
	in := func(r *Request) { r.Directory = folder }
	_, cold := w.ran(false, text, in)
	for range 2 {
		if _, warm := w.ran(true, text, in); warm != cold {
			t.Errorf("cold %.300q, warm %.300q", cold, warm)
		}
	}
}

// TestWarmPlacesAreForeseen: what a module sees of where it is, is where it is, whether that was known before or not.
func TestWarmPlacesAreForeseen(t *testing.T) {
	w := newWarming(t)
	other := t.TempDir()
	if err := os.Chmod(other, 0o1777); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(other, link); err != nil {
		t.Fatal(err)
	}
	module := "import os, sys, tempfile, traceback\nfrom ansible.module_utils import basic, later\n" +
		"z = sys.path[0]\n" +
		"assert os.path.exists(z), z\n" +
		"print('at', z)\n" +
		"loader = basic.__loader__\n" +
		"print([s.replace(z, 'Z') for s in (basic.__file__, basic.__spec__.origin, basic.__path__[0] if hasattr(basic, '__path__') else '', basic.fail.__code__.co_filename, " +
		"loader.archive, later.__file__, later.where(), sys.modules['ansible'].__file__, sys.modules['ansible.module_utils'].__path__[0])])\n" +
		"print(loader.prefix, loader.get_source('ansible.module_utils.basic') == BASIC, basic.__loader__ is later.__loader__ or loader.archive == later.__loader__.archive)\n" +
		"try:\n    basic.fail()\nexcept ValueError:\n    print(traceback.format_exc().replace(z, 'Z'))\n" +
		"made = [tempfile.mkdtemp() for unused in range(2)]\nfor path in made:\n    os.rmdir(path)\nprint(made[0] != made[1], len(os.path.basename(made[0])), next(tempfile._get_candidate_names()) not in str(made) + z)\n"
	text := func(more string) string {
		return program(t, "BASIC = "+strconv.Quote(basic)+"\nMORE = "+more+"\n"+module, "", map[string]string{
			"ansible/module_utils/later.py": "import sys\ndef where():\n    return sys._getframe().f_code.co_filename\n"})
	}
	// Where the temporary folder is, a wrapper may be told otherwise: by what is before the zip.
	elsewhere := func(folder, text string) string {
		return strings.Replace(text, "    folder = os.path.realpath(", "    tempfile.tempdir = '"+folder+"'\n    folder = os.path.realpath(", 1)
	}
	taken := func(text string) string {
		// Whoever comes to choose a name before takes the one that was foreseen; and a folder of that name is there already.
		return strings.Replace(text, "    folder = os.path.realpath(", "    names = tempfile._get_candidate_names()\n    next(names)\n    folder = os.path.realpath(", 1)
	}
	exists := func(text string) string {
		return strings.Replace(text, "    folder = os.path.realpath(tempfile", `    made = []
    real = os.mkdir
    def mkdir(path, mode=0o777):
        if not made:
            made.append(path)
            real(path)  # somebody was faster
        real(path, mode)
    os.mkdir = mkdir
    folder = os.path.realpath(tempfile`, 1)
	}
	place := regexp.MustCompile(`at (\S+)`)
	plain := text("False")
	var before string
	for n, c := range []struct{ name, text, in string }{
		{"the first", plain, ""}, {"the second", plain, ""}, {"elsewhere", elsewhere(other, plain), other}, {"there again", plain, ""},
		{"by a link", elsewhere(link, plain), other}, {"a name is taken", taken(plain), ""}, {"it is there", exists(plain), ""}, {"the last", plain, ""},
	} {
		_, cold := w.ran(false, c.text, nil)
		by, warm := w.ran(true, c.text, nil)
		at := place.FindStringSubmatch(warm)
		if by == nil || at == nil {
			t.Fatalf("%s: %s", c.name, warm)
		}
		if at[1] == before || !strings.HasPrefix(at[1], c.in) {
			t.Errorf("%s: at %s", c.name, at[1])
		}
		before = at[1]
		if place.ReplaceAllString(warm, "") != place.ReplaceAllString(cold, "") {
			t.Errorf("%d %s:\ncold: %s\nwarm: %s", n, c.name, cold, warm)
		}
	}
}

// TestWarmPlacesAreKnown: from the second process of an archive on, its modules have their place before one of them is asked for.
func TestWarmPlacesAreKnown(t *testing.T) {
	w := newWarming(t)
	const asked = "        from ansible.module_utils import basic\n"
	text := strings.Replace(program(t, "print('ran')", "", nil), asked,
		"        import gc\n        gc.unfreeze()\n"+
			"        files = [o.__file__ for o in gc.get_objects() if type(o) is type(gc) and o.__name__ == 'ansible.module_utils.basic']\n"+
			"        print('known:', path + '/ansible/module_utils/basic.py' in files)\n"+asked, 1)
	for n, want := range []string{"False", "True", "True"} {
		if _, got := w.ran(true, text, nil); got != "0|known: "+want+"\nran\n|" {
			t.Errorf("%d: %s", n, got)
		}
	}
}

// TestWarmDecodesAsEver but for the zip, and that once.
func TestWarmDecodesAsEver(t *testing.T) {
	w := newWarming(t)
	text := program(t, "import base64, binascii, inspect\n"+
		"print(base64.b64decode.__name__, base64.b64decode.__module__, inspect.signature(base64.b64decode), base64.b64decode(b'YQ=='), base64.standard_b64decode('Yg=='), base64.b64decode('Y-_w', altchars='-_'))\n"+
		"try:\n    base64.b64decode('Y', validate=True)\nexcept binascii.Error as error:\n    print(error)\n", "", nil)
	variants := map[string]string{
		"as it is":            text,
		"another text first":  strings.Replace(text, "    folder = os.path.realpath(", "    print(base64.b64decode('YWJj'), base64.urlsafe_b64decode('YWJj'), base64.b64decode.__name__)\n    folder = os.path.realpath(", 1),
		"an equal text":       strings.Replace(text, "base64.b64decode(zip_data)", "base64.b64decode((zip_data + ' ')[:-1])", 1),
		"bytes":               strings.Replace(text, "base64.b64decode(zip_data)", "base64.b64decode(zip_data.encode())", 1),
		"validated":           strings.Replace(text, "base64.b64decode(zip_data)", "base64.b64decode(zip_data, validate=True)", 1),
		"other letters first": strings.Replace(text, "    folder = os.path.realpath(", "    print(base64.b64decode(zip_data, b'AB')[:30])\n    folder = os.path.realpath(", 1),
		"twice":               strings.Replace(text, "            file.write(base64.b64decode(zip_data))", "            file.write(base64.b64decode(zip_data))\n            assert base64.b64decode(zip_data) == base64.b64decode(zip_data.encode())", 1),
		"kept under another name": strings.Replace(strings.Replace(text, "    folder = os.path.realpath(", "    from base64 import b64decode\n    folder = os.path.realpath(", 1),
			"base64.b64decode(zip_data)", "b64decode(zip_data)", 1),
	}
	for name, text := range variants {
		_, cold := w.ran(false, text, nil)
		for range 2 {
			if _, warm := w.ran(true, text, nil); warm != cold || !strings.HasPrefix(warm, "0|") {
				t.Errorf("%s:\ncold: %s\nwarm: %s", name, cold, warm)
			}
		}
	}
}

// endsOf is the socket that the processes of the only interpreter say their ends to.
func endsOf(t *testing.T, w *warming) string {
	t.Helper()
	for _, i := range w.table.warm.interpreters {
		if i.ends.name != "" {
			return i.ends.name
		}
	}
	t.Fatal("there is no socket to say an end to")
	return ""
}

// say sends a datagram, and descriptors with it, to an abstract socket.
func say(t *testing.T, name string, said []byte, with ...int) {
	t.Helper()
	s, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(s)
	var rights []byte
	if len(with) > 0 {
		rights = unix.UnixRights(with...)
	}
	if err := unix.Sendmsg(s, said, rights, &unix.SockaddrUnix{Name: "@" + name}, 0); err != nil {
		t.Fatal(err)
	}
}

// TestWarmEndIsHeardOfItselfAlone: what others say is not its end, nor what is no exit code, nor what it says after its end.
func TestWarmEndIsHeardOfItselfAlone(t *testing.T) {
	w := newWarming(t)
	text := program(t, "print(1)", "", nil)
	if _, got := w.ran(true, text, nil); got != "0|1\n|" {
		t.Fatal(got)
	}
	name := endsOf(t, w)
	mark := filepath.Join(t.TempDir(), "go on")
	if err := unix.Mkfifo(mark, 0o600); err != nil {
		t.Fatal(err)
	}
	// A child of the module's says an end as well, and the module what is no exit code.
	waits := program(t, "import os, socket, struct, sys\nfrom ansible.module_utils import basic\n"+
		"s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n"+
		"if not os.fork():\n    s.sendto(struct.pack('=i', 5), '\\0' + basic._ANSIBLE_ARGS)\n    os._exit(0)\n"+
		"os.wait()\nfor text in (b'', b'\\6', b'\\6\\0\\0\\0\\0', b'x' * 100):\n    s.sendto(text, '\\0' + basic._ANSIBLE_ARGS)\n"+
		"print('said', flush=True)\nopen('"+mark+"').read()\nsys.exit(7)", name, nil)
	p := w.start(true, waits, nil)
	for p.Await(t.Context(), long, &[2]int64{}).Ends[0] == 0 {
	}
	var code [4]byte
	binary.NativeEndian.PutUint32(code[:], 3)
	for range 3 {
		say(t, name, code[:]) // this process is none of its
	}
	if s := p.Await(t.Context(), 300*time.Millisecond, nil); s.Ended {
		t.Errorf("it runs, and is said to have ended: %+v", s)
	}
	if endsOf(t, w) != name {
		t.Error("that was another interpreter's")
	}
	if err := os.WriteFile(mark, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if s := p.Await(t.Context(), long, nil); !s.Ended || s.ExitCode != 7 {
		t.Errorf("%+v", s)
	}
	// Descriptors that come with what strangers say are not taken; and who has heard all that hears the next end.
	here := descriptors(t)
	for range 50 {
		say(t, name, code[:], 0, 1, 2)
	}
	said := false
	for n := 0; n < 10 && !said; n++ {
		by, got := w.ran(true, text, nil)
		if got != "0|1\n|" {
			t.Error(got)
		}
		said = by.ending.Load()
	}
	if now := descriptors(t); !said || now > here+20 {
		t.Errorf("the next end is heard: %v; %d descriptors, of %d before", said, now, here)
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

// said is whether a process can say its end itself.
type said int

const (
	no said = iota
	yes
	perhaps
)

// TestWarmEndIsSaid by the process itself where it can be; its parent reports it anyway, and then nothing of it is left.
func TestWarmEndIsSaid(t *testing.T) {
	w := newWarming(t)
	for name, c := range map[string]struct {
		module string
		code   int64
		said   said
	}{
		"as most do":            {"print(1)", 0, yes},
		"with a code":           {"import sys\nsys.exit(3)", 3, yes},
		"far away":              {"import sys\nsys.exit(-1)", 255, yes},
		"in another root":       {"import os, sys\nos.chroot('/var')\nsys.exit(3)", 3, perhaps},
		"another user":          {"import os, sys\nos.setgroups([])\nos.setgid(65534)\nos.setuid(65534)\nsys.exit(3)", 3, yes},
		"in another network":    {"import ctypes, sys\nassert not ctypes.CDLL(None).unshare(0x40000000)\nsys.exit(3)", 3, no},
		"all its own closed":    {"import os, sys\nos.closerange(3, 1000)\nsys.exit(3)", 3, yes},
		"not its own":           {"import os\nos._exit(3)", 3, no},
		"with a thread":         {"import sys, threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\nsys.exit(3)", 3, no},
		"with no descriptors":   {"import resource, sys\nresource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))\nsys.exit(3)", 3, no},
		"another program":       {"import os\nos.execv('/bin/sh', ['sh', '-c', 'exit 3'])", 3, no},
		"killed":                {"import os, signal\nos.kill(os.getpid(), signal.SIGTERM)", 128 + int64(unix.SIGTERM), no},
		"with signals as ever":  {"import signal, sys\nfor n in (signal.SIGPIPE, signal.SIGTERM, signal.SIGCHLD):\n    signal.signal(n, signal.SIG_DFL)\nsys.exit(3)", 3, yes},
		"with all of it closed": {"import os, sys\nsys.stdout.flush()\nos.closerange(0, 1000)\nsys.exit(3)", 3, perhaps},
	} {
		if os.Geteuid() != 0 && strings.Contains(name, "another") {
			continue
		}
		text, said := program(t, c.module, "", nil), false
		for n := 0; n < 10 && !said && (c.said == yes || n < 2); n++ { // its parent may be as fast
			p := w.start(true, text, nil)
			s := p.Await(t.Context(), long, nil)
			by, _ := p.child.(*warmed)
			if by == nil {
				t.Fatalf("%s: %T", name, p.child)
			}
			if s.ExitCode != c.code {
				t.Errorf("%s: exit code %d", name, s.ExitCode)
			}
			said = said || by.ending.Load()
			select {
			case <-by.over:
			case <-time.After(long):
				t.Errorf("%s: its parent has not reported it", name)
			}
			by.ends.mu.Lock()
			if by.ends.awaited[by.processID()] != nil {
				t.Errorf("%s: it is awaited still", name)
			}
			by.ends.mu.Unlock()
			_ = w.table.Release(p)
		}
		if c.said != perhaps && said != (c.said == yes) {
			t.Errorf("%s: said by itself: %v", name, said)
		}
	}
	if os.Geteuid() != 0 {
		return
	}
	said := false
	for n := 0; n < 10 && !said; n++ {
		by, got := w.ran(true, program(t, "import os\nprint(os.getuid())", "", nil), func(r *Request) {
			r.User, r.CommandLine = "nobody", "/bin/sh -c /usr/bin/python3" // others may be root's alone
		})
		if got != "0|65534\n|" {
			t.Error(got)
		}
		said = by != nil && by.ending.Load()
	}
	if !said {
		t.Error("another user's is not heard")
	}
}

// TestWarmEndWithChildren: what a module's children say while it ends is its output, and what they say later is nobody's.
func TestWarmEndWithChildren(t *testing.T) {
	w := newWarming(t)
	for name, module := range map[string]string{
		"a short one":      "import subprocess\nsubprocess.Popen(['/bin/sh', '-c', 'sleep 0.05; echo child'])\nprint('parent', flush=True)",
		"a long one":       "import subprocess\nsubprocess.Popen(['/bin/sh', '-c', 'echo child; sleep 2; echo late'])\nimport time\ntime.sleep(0.2)\nprint('parent', flush=True)",
		"one of itself":    "import os, sys, time\nif not os.fork():\n    time.sleep(0.05)\n    print('child')\n    sys.exit(9)\ntime.sleep(0.01)\nprint('parent')\nsys.exit(4)",
		"one in its place": "import os, sys, time\nif os.fork():\n    os._exit(0)\nos.setsid()\ntime.sleep(0.05)\nprint('child')\nsys.exit(9)",
		"one that is gone": "import os, sys, time\nprint('parent', flush=True)\nif not os.fork():\n    os.setsid()\n    n = os.open('/dev/null', os.O_RDWR)\n    [os.dup2(n, k) for k in range(3)]\n    time.sleep(1)\n    sys.exit(9)\nsys.exit(4)",
	} {
		_, cold := w.ran(false, program(t, module, "", nil), nil)
		for range 2 {
			begin := time.Now()
			_, warm := w.ran(true, program(t, module, "", nil), nil)
			if warm != cold || strings.Contains(warm, "late") {
				t.Errorf("%s: cold %q, warm %q", name, cold, warm)
			}
			if took := time.Since(begin); took > 1500*time.Millisecond {
				t.Errorf("%s: %v", name, took)
			}
		}
	}
}

// TestWarmEndLooksAtAnyObject that is left, of whatever kind of type.
func TestWarmEndLooksAtAnyObject(t *testing.T) {
	w := newWarming(t)
	for name, kind := range map[string]string{
		"no hash":       "    __hash__ = None\n",
		"all are equal": "    def __eq__(self, other):\n        return True\n    def __hash__(self):\n        return 1\n",
		"no equality":   "    def __eq__(self, other):\n        raise RuntimeError('compared')\n    def __hash__(self):\n        return hash('x')\n",
	} {
		text := program(t, "from ansible.module_utils import basic\nclass M(type):\n"+kind+"class C(metaclass=M):\n    pass\nbasic.c = C()\n"+
			"class D(metaclass=M):\n    def __del__(self, write=__import__('os').write):\n        write(1, b'deleted')\nbasic.d = D()\nprint('x', flush=True)", "", nil)
		_, cold := w.ran(false, text, nil)
		for range 2 {
			if _, warm := w.ran(true, text, nil); warm != cold {
				t.Errorf("%s:\ncold: %s\nwarm: %s", name, cold, warm)
			}
		}
	}
}

// TestWarmEndLetsGo: what a module has held until its end, the next one can have.
func TestWarmEndLetsGo(t *testing.T) {
	w := newWarming(t)
	lock := filepath.Join(t.TempDir(), "lock")
	if err := os.WriteFile(lock, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	// It has much in memory, which takes a while to be taken apart.
	text := program(t, "import fcntl, os, mmap\nd = os.open('"+lock+"', os.O_RDWR)\nfcntl.flock(d, fcntl.LOCK_EX | fcntl.LOCK_NB)\n"+
		"from ansible.module_utils import basic\nbasic.memory = mmap.mmap(-1, 400 << 20)\nfor n in range(0, 400 << 20, 4096):\n    basic.memory[n] = 1\nprint('had it')", "", nil)
	for n := range 4 {
		p := w.start(true, text, nil)
		if s := p.Await(t.Context(), long, nil); s.ExitCode != 0 || output(t, p, s)[0] != "had it\n" {
			t.Errorf("%d: %+v %q", n, s, output(t, p, s))
		}
		file, err := os.OpenFile(lock, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			t.Errorf("%d: %v", n, err)
		}
		file.Close()
		_ = w.table.Release(p)
	}
}

// inUnit has this process in a control group as the agent's service has it, where the machine lets it.
func inUnit(t *testing.T) {
	t.Helper()
	mount := unifiedMount()
	if mount == "" {
		t.Skip("there are no control groups of version 2")
	}
	was := &group{path: groupOf("self")}
	unit := &group{path: filepath.Join(mount, fmt.Sprintf("sojourn-test-%d", os.Getpid()))}
	if os.Mkdir(unit.path, 0o755) != nil || unit.add(os.Getpid()) != nil {
		_ = os.Remove(unit.path)
		t.Skip("this machine's control groups are not this user's")
	}
	t.Cleanup(func() {
		if err := was.add(os.Getpid()); err != nil {
			t.Error(err)
		}
		for _, id := range unit.members() {
			_ = was.add(id)
		}
		for deadline := time.Now().Add(long); os.Remove(unit.path) != nil; time.Sleep(10 * time.Millisecond) {
			left, _ := filepath.Glob(filepath.Join(unit.path, "*", "cgroup.procs"))
			for _, path := range left { // an interpreter's is left where a part of it is about to end
				_ = os.Remove(filepath.Dir(path))
			}
			if time.Now().After(deadline) {
				t.Fatalf("in %s there are %v", unit.path, left)
			}
		}
	})
}

// TestWarmGroupsAreGone once their processes are released, though these are still about to end when they have said so.
func TestWarmGroupsAreGone(t *testing.T) {
	inUnit(t)
	w := newWarming(t)
	for name, module := range map[string]string{
		"a small one":        "print(1)",
		"a large one":        "import mmap\nfrom ansible.module_utils import basic\nbasic.memory = mmap.mmap(-1, 200 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, 'MAP_POPULATE', 0x8000))\nprint(1)",
		"one that fails":     "print(1)\nraise SystemExit(3)",
		"one that is killed": "import os, signal\nprint(1, flush=True)\nos.kill(os.getpid(), signal.SIGKILL)",
	} {
		text := program(t, module, "", nil)
		for n := range 3 {
			p := w.start(true, text, nil)
			if s := p.Await(t.Context(), long, nil); !s.Ended || output(t, p, s)[0] != "1\n" {
				t.Errorf("%s: %+v %q", name, s, output(t, p, s))
			}
			by, is := p.child.(*warmed)
			if !is || by.group == nil || !strings.HasPrefix(filepath.Base(by.group.path), groupPrefix) {
				t.Fatalf("%s: %T in no group", name, p.child)
			}
			_ = w.table.Release(p)
			if _, err := os.Lstat(by.group.path); err == nil {
				t.Errorf("%s %d: its group is there, with %v in it", name, n, by.group.members())
			}
		}
	}
	w.table.End()
	if left := ownGroups(groupPrefix); len(left) != 0 {
		t.Errorf("%d are left, of which the first has %v in it", len(left), left[0].members())
	}
}

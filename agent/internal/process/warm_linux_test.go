package process

import (
	"archive/zip"
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sojourn.example/agent/internal/account"
)

// wrapper is as much of AnsiballZ as there is to it: a zip in a temporary folder comes first in the path, the module in it runs as __main__.
const wrapper = `from __future__ import annotations
_ANSIBALLZ_WRAPPER = True
def main(zip_data, params):
    import sys
    sys.path = [p for p in sys.path if p not in ('', '.')]
    import base64, os, runpy, shutil, tempfile
    folder = os.path.realpath(tempfile.mkdtemp(prefix='ansible_thing_payload_'))
    try:
        path = os.path.join(folder, 'ansible_thing_payload.zip')
        with open(path, 'wb') as file:
            file.write(base64.b64decode(zip_data))
        sys.path.insert(0, path)
        from ansible.module_utils import basic
        basic._ANSIBLE_ARGS = params
        runpy.run_module(mod_name='ansible.modules.thing', init_globals={}, run_name='__main__', alter_sys=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
if __name__ == '__main__':
    main(
        zip_data = '%s',
        params='%s',
    )
`

// basic counts in a variable how often it is run: once for all that are forked.
const basic = "import os, time\n_ANSIBLE_ARGS = None\nBEGUN = str(time.time())\ndef fail():\n    raise ValueError('from basic')\n"

// deleted is a class whose objects say so when they are.
const deleted = "import os\nclass C:\n    def __del__(self, write=os.write):\n        write(1, b'deleted')\n"

type warming struct {
	t     *testing.T
	table *Table
}

func newWarming(t *testing.T) *warming {
	t.Helper()
	w := &warming{t, NewTable(t.TempDir(), nil)}
	t.Cleanup(w.table.End)
	return w
}

func program(t *testing.T, module, params string, others map[string]string) string {
	t.Helper()
	files := map[string]string{
		"ansible/__init__.py": "", "ansible/module_utils/__init__.py": "", "ansible/module_utils/basic.py": basic,
		"ansible/modules/__init__.py": "", "ansible/modules/thing.py": module,
	}
	for name, text := range others {
		files[name] = text
	}
	var raw bytes.Buffer
	archive := zip.NewWriter(&raw)
	for name, text := range files {
		entry, err := archive.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprint(entry, text)
	}
	if err := archive.Close(); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf(wrapper, base64.StdEncoding.EncodeToString(raw.Bytes()), params)
}

func (w *warming) start(warm bool, program string, more func(*Request)) *Process {
	w.t.Helper()
	r := &Request{CommandLine: "/bin/sh -c '" + python(w.t) + "'", Input: strings.NewReader(program), Warm: warm}
	if more != nil {
		more(r)
	}
	p, err := w.table.Start(w.t.Context(), r)
	if err != nil {
		w.t.Fatal(err)
	}
	return p
}

func (w *warming) run(warm bool, program string) string {
	w.t.Helper()
	p := w.start(warm, program, nil)
	s := p.Await(w.t.Context(), long, nil)
	if !s.Ended {
		w.t.Fatal("it has not ended")
	}
	if _, is := p.child.(*warmed); is != warm {
		w.t.Errorf("warm: %v, but %T", warm, p.child)
	}
	got := output(w.t, p, s)
	return fmt.Sprintf("%d|%s|%s", s.ExitCode, got[0], strings.TrimPrefix(got[1], "Killed\n")) // as shells say of their children
}

func python(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("python3")
	if err != nil {
		t.Fatal("there is no python3")
	}
	return path
}

// TestWarmIsAsCold runs what a module may do both ways.
func TestWarmIsAsCold(t *testing.T) {
	w := newWarming(t)
	for name, module := range map[string]string{
		"output":      "from ansible.module_utils import basic\nimport sys\nprint(basic._ANSIBLE_ARGS); sys.stderr.write('e\\n'); sys.exit(3)",
		"no exit":     "print(1)",
		"error":       "import os, sys\nos.chdir('/')\nraise SystemExit('a word')",
		"exception":   "import sys\nsys.tracebacklimit = 0\nraise ValueError('x')",
		"_exit":       "import os\nos.write(1, b'now'); os._exit(9)",
		"killed":      "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
		"input":       "import sys\nprint(repr(sys.stdin.read()), sys.stdin.buffer.raw.name, sys.stdin.isatty())",
		"large":       "import sys\nsys.stdout.write('0123456789' * 60000)",
		"streams":     "import sys\nprint([(s.encoding, s.errors, s.line_buffering) for s in (sys.stdin, sys.stdout, sys.stderr)])",
		"environment": "import os\nprint(sorted((n, v) for n, v in os.environ.items() if n != '_'), os.getcwd(), os.umask(0))",
		"identity":    "import os\nprint(os.getuid(), os.getgid(), os.getgroups(), os.getsid(0) != os.getppid() and os.getpgid(0) == os.getsid(0))",
		"arguments":   "import sys\nprint(len(sys.argv), sys.argv[0].endswith('thing.py'), sys.flags, sys.executable)",
		"main":        "import sys\nm = sys.modules['__main__']\nprint(__name__, m.__dict__ is globals(), __spec__.name, __package__, __builtins__ is not None)",
		"atexit":      "import atexit, sys\natexit.register(print, 'at the end')\nsys.exit(4)",
		"exit_text":   "import sys\nsys.exit('words')",
		"exit_far":    "import sys\nsys.exit(-1)",
		"exit_true":   "import sys\nsys.exit(True)",
		"deleted":     deleted + "c = C()\nimport sys\nsys.exit(3)",
		"cycle":       deleted + "c = C()\nc.c = c",
		"kept":        deleted + "from ansible.module_utils import basic\nbasic.c = C()",
		"unflushed":   "f = open('/dev/stdout', 'w')\nf.write('unflushed')",
		"kept_open":   "from ansible.module_utils import basic\nbasic.f = open('/dev/stdout', 'w')\nbasic.f.write('unflushed')",
		"generator":   "import os\nfrom ansible.module_utils import basic\ndef g():\n    try:\n        yield\n    finally:\n        os.write(1, b'over')\nbasic.g = g()\nnext(basic.g)",
		"finalized":   "import weakref\nfrom ansible.module_utils import basic\nweakref.finalize(basic.fail, print, 'finalized')",
		"pool":        "from concurrent.futures import ThreadPoolExecutor\np = ThreadPoolExecutor(2)\np.submit(print, 'from a thread')",
		"closed":      "import sys\nprint('said')\nsys.stdout.close()",
		"replaced":    "import io, sys\nsys.stdout = io.TextIOWrapper(open(1, 'wb', closefd=False))\nprint('said')",
		"threads":     "import threading, time\nt = threading.Timer(0.1, print, ['later'])\nt.start()\nprint(threading.active_count())",
		"limits":      "import resource\nprint([resource.getrlimit(n) for n in range(16)])",
		"signals":     "import signal\nprint([(n, str(signal.getsignal(n))) for n in range(1, 65) if n not in (32, 33)], signal.pthread_sigmask(signal.SIG_BLOCK, []))",
		"descriptors": "import os\nprint(sorted((n, os.readlink('/proc/self/fd/' + n).partition(':')[0]) for n in os.listdir('/proc/self/fd') if os.path.exists('/proc/self/fd/' + n)))",
		"command":     "import os\nprint(open('/proc/self/cmdline').read(), open('/proc/self/comm').read())",
		"children":    "import subprocess\nprint(subprocess.run(['/bin/sh', '-c', 'echo hello; exit 5'], capture_output=True))",
		"processes":   "import multiprocessing\nif __name__ == '__main__':\n    with multiprocessing.get_context('fork').Pool(2) as pool:\n        print(pool.map(abs, [-1, -2]))",
		"path":        "import sys\nprint(sys.path[1:], len(sys.meta_path), len(sys.path_hooks), sorted(n for n in sys.modules if n.startswith('ansible')))",
		"locale":      "import locale\nlocale.setlocale(locale.LC_ALL, 'C')\nprint(locale.getlocale(), locale.getpreferredencoding())",
		"files": "from ansible.module_utils import basic\nimport inspect, sys\nz = sys.path[0]\n" +
			"print([s.replace(z, 'Z') for s in (basic.__file__, basic.__spec__.origin, basic.fail.__code__.co_filename, basic.__loader__.archive, str(basic.__cached__))], " +
			"basic.__loader__.prefix, type(basic.__loader__), sys.modules['ansible'].__path__ == [z + '/ansible'], inspect.getsource(basic.fail))",
		"traceback": "import sys, traceback\nfrom ansible.module_utils import basic\ntry:\n    basic.fail()\nexcept ValueError:\n" +
			"    print(traceback.format_exc().replace(sys.path[0], 'Z'))",
		"main_traceback": "import sys\nsys.excepthook = lambda t, v, b: print(t, v, b.tb_frame.f_code.co_filename, b.tb_lineno)\n1/0",
	} {
		t.Run(name, func(t *testing.T) {
			w := &warming{t, w.table}
			text := program(t, module, "secret", nil)
			cold := w.run(false, text)
			for range 2 {
				if warm := w.run(true, text); warm != cold {
					t.Errorf("cold: %s\nwarm: %s", cold, warm)
				}
			}
		})
	}
}

// TestWarmProgramsAreAsCold varies what is around the zip, of which only what differs is compiled.
func TestWarmProgramsAreAsCold(t *testing.T) {
	w := newWarming(t)
	text := program(t, "print(1)", "x", nil)
	call := text[strings.LastIndex(text, "if __name__"):]
	replaced := func(old, by string) string {
		t.Helper()
		if !strings.Contains(text, old) {
			t.Fatal(old)
		}
		return strings.Replace(text, old, by, 1)
	}
	first := "    import sys\n"
	archive := regexp.MustCompile("'UEsDB[^']*'").FindString(text)
	for _, c := range [][2]string{
		{"as it is", text},
		{"no if", replaced(call, strings.ReplaceAll(strings.TrimPrefix(call, "if __name__ == '__main__':\n    "), "\n    ", "\n"))},
		{"in the function", strings.Replace(replaced("zip_data = "+archive, "zip_data = None"), first, "    zip_data = "+archive+"\n"+first, 1)},
		{"another beginning", replaced(first, first+"    print('other')\n")},
		{"an error before", replaced("params='x'", "params=1/0")},
		{"an error in the function", replaced(first, first+"    1/0\n")},
		{"an error in what is compiled", replaced("params='x'", "params='x")},
		{"a coding", "# coding: utf-8\nprint(ascii('ä'))\n" + strings.TrimPrefix(text, "from __future__ import annotations\n")},
		{"a warning", replaced(first, first+"    sys is 'x'\n")},
		{"a text that goes on", replaced(call, "print(len(\"\"\"\nif __name__ == \"\"\"))\n"+call)},
		{"a mark in what follows", replaced("params='x'", "params='UEsDB'")},
	} {
		t.Run(c[0], func(t *testing.T) {
			run := func(warm bool) string {
				p := w.start(warm, c[1], nil)
				s := p.Await(t.Context(), long, nil)
				got := output(t, p, s)
				_ = w.table.Release(p)
				return fmt.Sprint(s.ExitCode, got)
			}
			cold := run(false)
			for range 2 {
				if warm := run(true); warm != cold {
					t.Errorf("cold: %s\nwarm: %s", cold, warm)
				}
			}
		})
	}
}

// TestWarmFilesAsAlikeAsCanBe: each has its own name nevertheless.
func TestWarmFilesAsAlikeAsCanBe(t *testing.T) {
	w := newWarming(t)
	alike := "def f():\n    pass\n"
	text := program(t, "import importlib, sys\nboth = [importlib.import_module('ansible.module_utils.' + name) for name in ('one', 'two')]\n"+
		"print([m.f.__code__.co_filename.replace(sys.path[0], 'Z') for m in both])", "",
		map[string]string{"ansible/module_utils/one.py": alike, "ansible/module_utils/two.py": alike})
	cold := w.run(false, text)
	if !strings.Contains(cold, "Z/ansible/module_utils/one.py', 'Z/ansible/module_utils/two.py") {
		t.Fatal(cold)
	}
	if warm := w.run(true, text); warm != cold {
		t.Errorf("cold: %s\nwarm: %s", cold, warm)
	}
}

// TestWarmTemplateThatCannotFork: those that it has begun keep their results.
func TestWarmTemplateThatCannotFork(t *testing.T) {
	w := newWarming(t)
	folder, err := os.MkdirTemp("", "warm")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(folder) })
	mark := filepath.Join(folder, "go on")
	if err := errors.Join(os.Chmod(folder, 0o755), unix.Mkfifo(mark, 0o644)); err != nil {
		t.Fatal(err)
	}
	// One archive for both: what they do is in their parameters.
	module := "import os, resource, sys\nfrom ansible.module_utils import basic\n" +
		"if basic._ANSIBLE_ARGS == 'long':\n    open('" + mark + "').read()\n    sys.exit(7)\n" +
		"if basic._ANSIBLE_ARGS == 'short':\n    resource.prlimit(os.getppid(), resource.RLIMIT_NPROC, (1, 1))\n"
	run := func(params string) *Process {
		return w.start(true, program(t, module, params, nil), func(r *Request) {
			r.User, r.CommandLine = "nobody", "/bin/sh -c /usr/bin/python3" // others may be root's alone
		})
	}
	ended := func(p *Process, code int64) {
		t.Helper()
		if s := p.Await(t.Context(), long, nil); !s.Ended || s.ExitCode != code {
			t.Errorf("%+v %q", s, output(t, p, s))
		}
		_ = w.table.Release(p)
	}
	waits := run("long")
	ended(run("short"), 0)
	ended(run("none"), 0) // without, since it could not be forked
	var file *os.File
	for deadline := time.Now().Add(long); file == nil; time.Sleep(10 * time.Millisecond) {
		if file, err = os.OpenFile(mark, os.O_WRONLY|unix.O_NONBLOCK, 0); err != nil && time.Now().After(deadline) {
			t.Fatal(err) // nobody reads
		}
	}
	file.Close()
	ended(waits, 7)
}

// TestWarmTemplateThatHangs does not hold up the agent's end.
func TestWarmTemplateThatHangs(t *testing.T) {
	w := newWarming(t)
	p := w.start(true, program(t, "import os, signal\nos.kill(os.getppid(), signal.SIGSTOP)", "", nil), nil)
	if s := p.Await(t.Context(), long, nil); !s.Ended || s.ExitCode != 0 {
		t.Fatalf("%+v: it says so itself", s)
	}
	for _, i := range w.table.warm.interpreters {
		for name := range w.table.warm.archives {
			go i.prepare(name)
		}
		for made := false; !made; time.Sleep(time.Millisecond) {
			i.waiting.Lock()
			made = len(i.spares) == 1
			i.waiting.Unlock()
		}
	}
	begin := time.Now()
	w.table.End()
	if took := time.Since(begin); took > warmPatience/2 {
		t.Error(took)
	}
}

// TestWarmLetsGoBeforeItSaysItsEnd: what a module has locked is free for the next one, however long it takes until its memory is.
func TestWarmLetsGoBeforeItSaysItsEnd(t *testing.T) {
	w := newWarming(t)
	path := filepath.Join(t.TempDir(), "lock")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	text := program(t, "import fcntl, sys\nsys.lock = open('"+path+"')\nfcntl.flock(sys.lock, fcntl.LOCK_EX)\nsys.memory = bytearray(b'x') * (300 << 20)", "", nil)
	for range 2 {
		if got := w.run(true, text); got != "0||" {
			t.Fatal(got)
		}
		file, err := os.Open(path)
		if err == nil {
			err = unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		}
		if err != nil {
			t.Error(err)
		}
		file.Close()
	}
}

// TestWarmGivesWay: nobody is at work as a user who is about to be removed, unless a module is.
func TestWarmGivesWay(t *testing.T) {
	nobody, err := account.Lookup("nobody")
	if err != nil {
		t.Fatal(err)
	}
	at := func() (count int) {
		for _, e := range processes() {
			var s unix.Stat_t
			if unix.Stat("/proc/"+strconv.Itoa(e.id), &s) == nil && s.Uid == nobody.UID {
				count++
			}
		}
		return count
	}
	before := at()
	w := newWarming(t)
	as := func(text string) *Process {
		return w.start(true, text, func(r *Request) { r.User, r.CommandLine = "nobody", "/bin/sh -c /usr/bin/python3" })
	}
	run := func(command string) {
		p, err := w.table.Start(t.Context(), &Request{CommandLine: command})
		if err != nil {
			t.Fatal(err)
		}
		if s := p.Await(t.Context(), long, nil); !s.Ended {
			t.Error(s)
		}
	}
	as(program(t, "pass", "", nil)).Await(t.Context(), long, nil)
	run("true")
	if at() == before {
		t.Fatal("none is kept")
	}
	run("true userdel nobody")
	if n := at(); n != before {
		t.Errorf("%d processes of his", n-before)
	}
	as(program(t, "pass", "", nil)).Await(t.Context(), long, nil)
	if got := w.run(true, program(t, "pass", "ansible.modules.user", nil)); got != "0||" {
		t.Error(got)
	}
	if n := at(); n != before {
		t.Errorf("%d processes of his", n-before)
	}
	works := as(program(t, "import time\ntime.sleep(1)\nprint('done')", "", nil))
	run("true userdel nobody")
	s := works.Await(t.Context(), long, nil)
	if got := output(t, works, s); got[0] != "done\n" {
		t.Errorf("%+v %q", s, got)
	}
}

func TestWarmImportsOnce(t *testing.T) {
	w := newWarming(t)
	ask := func(more string) string {
		return w.run(true, program(t, "from ansible.module_utils import basic\nprint(basic.BEGUN)\n"+more, "", nil))
	}
	first := ask("")
	if again, other := ask(""), ask("# another module"); again != first || other != first {
		t.Errorf("%q %q %q", first, again, other)
	}
	changed := program(t, "from ansible.module_utils import basic\nprint(basic.BEGUN)", "", map[string]string{"ansible/module_utils/basic.py": basic + "BEGUN = 'mine'\n"})
	if got := w.run(true, changed); got != "0|mine\n|" {
		t.Errorf("other content, the same name: %q", got)
	}
}

// TestWarmImportsAhead has an archive's imports made before its first module comes, for as many as fit beside what is in use.
func TestWarmImportsAhead(t *testing.T) {
	known := warmProgram
	warmProgram = bytes.Replace(known, []byte("ROOMY = 1 << 30"), []byte("ROOMY = 0"), 1) // whatever memory this machine has
	t.Cleanup(func() { warmProgram = known })
	w := newWarming(t)
	folder := t.TempDir()
	// Tells of each time that a template is made with it: there is no module of it yet.
	helper := func(name string) map[string]string {
		return map[string]string{"ansible/module_utils/helper.py": fmt.Sprintf("import os\nwith open(%q, 'a') as file:\n    file.write('made ')\n", filepath.Join(folder, name))}
	}
	modules := make(map[string]string) // each packed once, for a zip has its files in any order
	module := func(name string) string {
		if modules[name] == "" {
			modules[name] = program(t, "from ansible.module_utils import helper\nprint('ran')", "", helper(name))
		}
		return modules[name]
	}
	ahead := func(name string) {
		_, archive, _ := archiveIn([]byte(module(name)), nil)
		w.table.warm.prepare(w.table.warm.remember(archive))
	}
	made := func(name string) int {
		text, _ := os.ReadFile(filepath.Join(folder, name))
		return strings.Count(string(text), "made")
	}
	ahead("no interpreter")
	if n := made("no interpreter"); n != 0 {
		t.Errorf("made %d without any interpreter", n)
	}
	if got := w.run(true, program(t, "print('ran')", "a secret", nil)); got != "0|ran\n|" {
		t.Fatal(got)
	}
	if !bytes.Contains(warmProgram, fmt.Appendf(nil, `BEGINNING = b'%s'`, strings.ReplaceAll(string(beginningMark), "\n", `\n`))) {
		t.Error("warm.py goes by another beginning")
	}
	for _, i := range w.table.warm.interpreters {
		if !bytes.HasSuffix(i.before, beginningMark) || bytes.Contains(i.before, []byte("secret")) {
			t.Errorf("for others it keeps %q", i.before)
		}
	}
	ahead("first")
	if n := made("first"); n != 1 {
		t.Errorf("made %d times", n)
	}
	ahead("first")
	for range 2 {
		if got := w.run(true, module("first")); got != "0|ran\n|" {
			t.Error(got)
		}
	}
	if n := made("first"); n != 1 {
		t.Errorf("made %d times, and one was enough", n)
	}
	var last int
	for n := range 20 {
		name := strconv.Itoa(n)
		ahead(name)
		if made(name) == 0 {
			break
		}
		last = n
	}
	if last == 0 || last > 15 {
		t.Errorf("%d are made ahead", last)
	}
	// What comes goes before what may come, and what was used stays.
	for range 3 {
		if got := w.run(true, module("comes")) + w.run(true, module("first")) + w.run(true, module("0")); got != "0|ran\n|0|ran\n|0|ran\n|" {
			t.Error(got)
		}
	}
	if n, m, k := made("comes"), made("first"), made("0"); n != 1 || m != 1 || k != 1 {
		t.Errorf("made %d, %d and %d times", n, m, k)
	}
}

// TestWarmIsReadyBeforeAnyModule has an interpreter made for a command line that is yet to come, and what modules will import imported by it.
func TestWarmIsReadyBeforeAnyModule(t *testing.T) {
	known := warmProgram
	warmProgram = bytes.Replace(known, []byte("ROOMY = 1 << 30"), []byte("ROOMY = 0"), 1)
	t.Cleanup(func() { warmProgram = known })
	w := newWarming(t)
	folder := t.TempDir()
	text := program(t, "from ansible.module_utils import helper\nimport os\nprint(os.environ.get('A'), os.getppid())", "a secret", map[string]string{
		"ansible/module_utils/helper.py": fmt.Sprintf("import os\nwith open(%q, 'a') as file:\n    file.write('made ')\n", filepath.Join(folder, "made"))})
	before, archive, _ := archiveIn([]byte(text), nil)
	request := func() *Request {
		return &Request{CommandLine: "/bin/sh -c '" + python(t) + "'", Environment: []Variable{{"A", "b"}}}
	}
	likely := func(commandLine string) *Request {
		return &Request{CommandLine: commandLine, Environment: request().Environment}
	}
	odd := filepath.Join(folder, "python;true")
	if err := os.Symlink(python(t), odd); err != nil {
		t.Fatal(err)
	}
	there := []string{"no-such-python", "/no/such/python", folder, python(t), odd}
	w.table.PrepareInterpreter(likely("/bin/sh -c 'exit 1 @interpreter@'"), there, before)
	w.table.PrepareInterpreter(&Request{CommandLine: "@interpreter@", User: "nobody of that name"}, there, before)
	w.table.PrepareInterpreter(likely("/bin/sh -c '@interpreter@'"), nil, before)
	w.table.PrepareInterpreter(likely("/bin/sh -c '@interpreter@'"), there[:3], before)
	w.table.PrepareInterpreter(likely("/bin/sh -c '@interpreter@'"), there[4:], before)
	if n := len(w.table.warm.interpreters); n != 0 {
		t.Fatalf("%d of what is none", n)
	}
	for range 2 { // to do it again is no harm
		w.table.PrepareInterpreter(likely("/bin/sh -c '@interpreter@'"), there, before)
	}
	var first *interpreter
	for _, i := range w.table.warm.interpreters {
		first = i
	}
	if len(w.table.warm.interpreters) != 1 || !bytes.HasSuffix(first.before, beginningMark) || bytes.Contains(first.before, []byte("secret")) {
		t.Fatalf("%d interpreters; for others it keeps %q", len(w.table.warm.interpreters), first.before)
	}
	w.table.warm.prepare(w.table.warm.remember(archive))
	made, err := os.ReadFile(filepath.Join(folder, "made"))
	if err != nil || string(made) != "made " {
		t.Fatalf("%q, %v", made, err)
	}
	for range 2 {
		p := w.start(true, text, func(r *Request) { r.Environment = request().Environment })
		s := p.Await(t.Context(), long, nil)
		if got := output(t, p, s); !s.Ended || s.ExitCode != 0 || !strings.HasPrefix(got[0], "b ") {
			t.Errorf("%d, %q", s.ExitCode, got)
		}
	}
	if made, _ := os.ReadFile(filepath.Join(folder, "made")); string(made) != "made " || len(w.table.warm.interpreters) != 1 || w.table.warm.interpreters[slices.Collect(maps.Keys(w.table.warm.interpreters))[0]] != first {
		t.Errorf("%q by %d interpreters: it was ready for another command line", made, len(w.table.warm.interpreters))
	}
	w.table.End()
	w.table.PrepareInterpreter(likely("/bin/sh -c '@interpreter@'"), there, before)
	if n := len(w.table.warm.interpreters); n != 0 {
		t.Errorf("%d after the end", n)
	}
}

// TestWarmIsNotHeldUpByAnother has a command line that never becomes an interpreter beside one that does; the end does not wait for it either.
func TestWarmIsNotHeldUpByAnother(t *testing.T) {
	w := newWarming(t)
	over := make(chan struct{})
	go func() {
		defer close(over)
		w.table.PrepareInterpreter(&Request{CommandLine: "sleep 1000; @interpreter@"}, []string{python(t)}, nil)
	}()
	begun := func() bool {
		w.table.warm.mu.Lock()
		defer w.table.warm.mu.Unlock()
		return len(w.table.warm.starting) == 1
	}
	for deadline := time.Now().Add(long); !begun(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it has not begun")
		}
	}
	if got := w.run(true, program(t, "print('ran')", "", nil)); got != "0|ran\n|" {
		t.Error(got)
	}
	select {
	case <-over:
		t.Error("it was waited for")
	default:
	}
	w.table.End()
	<-over
	if len(w.table.warm.starting)+len(w.table.warm.interpreters)+len(w.table.warm.failed) != 0 {
		t.Errorf("%v, %v", w.table.warm.interpreters, w.table.warm.failed)
	}
}

// TestWarmBeginsWhileTheInputComes has the interpreter of a module that is on its way begun, the first one only.
func TestWarmBeginsWhileTheInputComes(t *testing.T) {
	w := newWarming(t)
	text := program(t, "import os\nprint(os.environ.get('A'))", "", nil)
	begun := func() int {
		w.table.warm.mu.Lock()
		defer w.table.warm.mu.Unlock()
		return len(w.table.warm.interpreters)
	}
	reader, writer := io.Pipe()
	request := &Request{CommandLine: "/bin/sh -c '" + python(t) + "'", Input: reader, Warm: true, Environment: []Variable{{"A", "b"}}}
	w.table.Foresee(Request{CommandLine: request.CommandLine})
	w.table.Foresee(*request)
	for deadline := time.Now().Add(long); begun() == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("none has begun")
		}
	}
	go func() {
		_, _ = io.WriteString(writer, text)
		writer.Close()
	}()
	p, err := w.table.Start(t.Context(), request)
	if err != nil {
		t.Fatal(err)
	}
	s := p.Await(t.Context(), long, nil)
	if got := output(t, p, s); !s.Ended || got[0] != "b\n" || begun() != 1 {
		t.Errorf("%v, %q, %d interpreters", s.Ended, got, begun())
	}
	w.table.warm.foresee(&Request{CommandLine: request.CommandLine, Warm: true})
	if n := begun(); n != 1 {
		t.Errorf("%d interpreters: one was there", n)
	}
}

// TestWarmKeepsEffectsOut has module_utils do what must happen in each process anew.
func TestWarmKeepsEffectsOut(t *testing.T) {
	for name, effect := range map[string]string{
		"output": "print('said')", "thread": "import threading\nthreading.Thread(target=time.sleep, args=[60], daemon=True).start()",
		"file": "file = open('/etc/passwd')", "environment": "os.environ['MARK'] = 'x'", "error": "raise ImportError('no')",
		"handler": "import signal\nsignal.signal(signal.SIGUSR1, signal.SIG_IGN)",
	} {
		t.Run(name, func(t *testing.T) {
			w := newWarming(t)
			text := program(t, "import os\nfrom ansible.module_utils import basic\nprint(basic.BEGUN == '', os.environ.get('MARK'))\n", "",
				map[string]string{"ansible/module_utils/basic.py": basic + effect})
			strip := func(s string) string {
				lines := strings.Split(s, "\n")
				return lines[0] + lines[max(len(lines)-2, 0)]
			}
			if cold, warm := w.run(false, text), w.run(true, text); strip(warm) != strip(cold) {
				t.Errorf("cold: %s\nwarm: %s", cold, warm)
			}
		})
	}
}

func TestWhatIsNoWrapperRunsCold(t *testing.T) {
	w := newWarming(t)
	good := program(t, "print(1)", "", nil)
	for _, text := range []string{"print(1)", good + "\nzip_data='UEsDBAAA'\n", strings.Replace(good, "zip_data = ", "other = ", 1)} {
		p := w.start(true, text, nil)
		if s := p.Await(t.Context(), long, nil); !s.Ended {
			t.Fatal("it has not ended")
		}
		if _, is := p.child.(*warmed); is {
			t.Errorf("warm: %.60s", text)
		}
	}
	p := w.start(true, good, func(r *Request) { r.CommandLine = "cat >/dev/null; exit 3" })
	if s := p.Await(t.Context(), long, nil); s.ExitCode != 3 {
		t.Errorf("%+v", s)
	}
}

func TestWarmTreeIsKilled(t *testing.T) {
	w := newWarming(t)
	mark := filepath.Join(t.TempDir(), "child")
	text := program(t, "import subprocess, time\np = subprocess.Popen(['sleep', '600'])\nopen('"+mark+"', 'w').write(str(p.pid))\ntime.sleep(600)", "", nil)
	p := w.start(true, text, func(r *Request) { r.Timeout = 10 * time.Second })
	if s := p.Await(t.Context(), long, nil); !s.TimedOut || s.ExitCode != 128+int64(unix.SIGKILL) {
		t.Errorf("%+v", s)
	}
	raw, err := os.ReadFile(mark)
	if err != nil {
		t.Fatal(err)
	}
	id, _ := strconv.Atoi(string(raw))
	for deadline := time.Now().Add(long); alive(id); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("its child is there")
		}
	}
	if got := w.run(true, program(t, "print(1)", "", nil)); got != "0|1\n|" {
		t.Error(got)
	}
}

// TestWarmResultsAreTrue has an interpreter, or a part of it, go while a module runs that it has begun.
func TestWarmResultsAreTrue(t *testing.T) {
	other := func(w *warming, n int, more func(*Request)) {
		p := w.start(true, program(t, fmt.Sprintf("print(%d)", n), "", nil), more)
		if s := p.Await(t.Context(), long, nil); !s.Ended || s.ExitCode != 0 {
			t.Errorf("%+v", s)
		}
	}
	for name, goes := range map[string]func(*warming){
		"others are wanted": func(w *warming) {
			for n := range maximumInterpreters + 1 {
				other(w, n, func(r *Request) { r.Environment = []Variable{{"OTHER", strconv.Itoa(n)}} })
			}
		},
		"many modules": func(w *warming) {
			for n := range 13 { // TEMPLATES, and one
				other(w, n, nil)
			}
		},
		"it is of yesterday": func(w *warming) {
			for key, i := range w.table.warm.interpreters {
				w.table.warm.drop(key, i)
			}
			other(w, 1, nil)
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWarming(t)
			mark := filepath.Join(t.TempDir(), "go on")
			if err := unix.Mkfifo(mark, 0o600); err != nil {
				t.Fatal(err)
			}
			p := w.start(true, program(t, "import sys\nopen('"+mark+"').read()\nprint('at the end')\nsys.exit(7)", "", nil), nil)
			goes(w)
			if s := p.Await(t.Context(), time.Second, nil); s.Ended {
				t.Errorf("it has ended: %+v", s)
			}
			if err := os.WriteFile(mark, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			s := p.Await(t.Context(), long, nil)
			if got := output(t, p, s); !s.Ended || s.ExitCode != 7 || got[0] != "at the end\n" {
				t.Errorf("%+v %q", s, got)
			}
			for deadline := time.Now().Add(long); ; time.Sleep(10 * time.Millisecond) {
				w.table.warm.mu.Lock()
				left := len(w.table.warm.retired)
				w.table.warm.mu.Unlock()
				if left == 0 {
					break
				}
				if time.Now().After(deadline) {
					t.Fatalf("%d are there", left)
				}
			}
		})
	}
}

// TestWarmParentIsKilled: how the module has ended, it alone can say.
func TestWarmParentIsKilled(t *testing.T) {
	w := newWarming(t)
	for end, code := range map[string]int64{"sys.exit(7)": 7, "sys.stdout.flush(); os._exit(7)": lost} {
		text := program(t, "import os, signal, sys, time\nos.kill(os.getppid(), signal.SIGKILL)\ntime.sleep(1.5)\nprint('at the end')\n"+end, "", nil)
		p := w.start(true, text, nil)
		s := p.Await(t.Context(), long, nil)
		if got := output(t, p, s); s.ExitCode != code || got[0] != "at the end\n" {
			t.Errorf("%+v %q", s, got)
		}
		if got := w.run(true, program(t, "print(1)", "", nil)); got != "0|1\n|" {
			t.Error(got)
		}
	}
}

func TestArchivesThatAreKeptAreFew(t *testing.T) {
	var w warmer
	first := w.remember([]byte("0"))
	for n := range maximumArchives {
		if w.archive(first) == nil {
			t.Fatalf("gone after %d others", n)
		}
		w.remember([]byte(strconv.Itoa(n + 1)))
	}
	if w.archive(first) != nil || len(w.archives) != maximumArchives || w.archive(w.remember(make([]byte, MaximumArchive+1))) != nil {
		t.Error(len(w.archives))
	}
}

// TestWarmSpares looks at who waits for the next module: taken by it, killed, or dismissed where there are too many.
func TestWarmSpares(t *testing.T) {
	w := newWarming(t)
	waiting := func(n int) map[string]*spare {
		t.Helper()
		for deadline := time.Now().Add(long); ; time.Sleep(10 * time.Millisecond) {
			for _, i := range w.table.warm.interpreters {
				i.waiting.Lock()
				all := maps.Clone(i.spares)
				i.waiting.Unlock()
				if len(all) == n {
					for _, s := range all {
						<-s.made
					}
					return all
				}
			}
			if time.Now().After(deadline) {
				t.Fatalf("there are not %d that wait", n)
			}
		}
	}
	run := func(text string) (id int) {
		t.Helper()
		p := w.start(true, text, nil)
		if s := p.Await(t.Context(), long, nil); !s.Ended || s.ExitCode != 0 {
			t.Fatalf("%+v", s)
		}
		id = p.child.processID()
		deadline := time.Now().Add(long)
		for made := false; !made; time.Sleep(time.Millisecond) { // before it is released: nothing tells when one waits
			if time.Now().After(deadline) {
				t.Fatal("none waits for the next module")
			}
			for _, i := range w.table.warm.interpreters {
				i.waiting.Lock()
				made = made || len(i.spares) > 0
				i.waiting.Unlock()
			}
		}
		if err := w.table.Release(p); err != nil {
			t.Fatal(err)
		}
		return id
	}
	only := func() *spare {
		for _, s := range waiting(1) {
			return s
		}
		return nil
	}
	text := program(t, "print(1)", "", nil)
	run(text)
	s := only()
	if got := run(text); got != s.child.processID() {
		t.Errorf("%d was waiting, and %d ran it", s.child.processID(), got)
	}
	s = only()
	_ = unix.Kill(s.child.processID(), unix.SIGKILL)
	if got := run(text); got == s.child.processID() {
		t.Error("run by one that was dead")
	}
	first := only().child
	for n := range maximumSpares {
		run(program(t, fmt.Sprintf("print(%d)", n), "", nil))
	}
	waiting(maximumSpares)
	for deadline := time.Now().Add(long); alive(first.processID()); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it still waits")
		}
	}
	all := waiting(maximumSpares)
	w.table.End()
	for _, s := range all {
		if alive(s.child.processID()) {
			t.Error("it waits for an agent that has ended")
		}
	}
}

// TestWarmPagesAreLearnt looks at what a process that waits has made its own beforehand: what the module before it wrote to, and little else.
func TestWarmPagesAreLearnt(t *testing.T) {
	const populateWrite = 23
	page, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(page)
	if unix.Madvise(page, populateWrite) == unix.EINVAL {
		t.Skip("the kernel is older than 5.14, and does not know it") // then nothing is made its own beforehand
	}
	w := newWarming(t)
	const written, all = 4 << 20, 32 << 20
	text := program(t, fmt.Sprintf("from ansible.module_utils import ballast\nfor at in range(0, %d, 512):\n    ballast.DATA[at] = 2\nprint(sum(ballast.DATA[:%d]))", written, written),
		"", map[string]string{"ansible/module_utils/ballast.py": fmt.Sprintf("DATA = bytearray(b'\\1') * %d\n", all)})
	want := fmt.Sprintf("0|%d\n|", written+written/512)
	if got := w.run(true, text); got != want {
		t.Fatal(got)
	}
	var waiting *warmed
	for deadline := time.Now().Add(long); waiting == nil; time.Sleep(10 * time.Millisecond) { // nothing tells when one waits
		w.table.warm.mu.Lock()
		all := slices.Collect(maps.Values(w.table.warm.interpreters))
		w.table.warm.mu.Unlock()
		for _, i := range all {
			i.waiting.Lock()
			spares := slices.Collect(maps.Values(i.spares))
			i.waiting.Unlock()
			for _, s := range spares {
				<-s.made
				waiting = s.child
			}
		}
		if time.Now().After(deadline) {
			t.Fatal("none waits")
		}
	}
	own := 0
	for deadline := time.Now().Add(long); own < written; time.Sleep(10 * time.Millisecond) {
		if own = ownBytes(t, waiting.processID()); time.Now().After(deadline) {
			t.Fatalf("%d bytes are its own", own)
		}
	}
	for range 10 { // it would go on
		own = max(own, ownBytes(t, waiting.processID()))
		time.Sleep(10 * time.Millisecond)
	}
	if own > all/2 {
		t.Errorf("%d bytes are its own", own)
	}
	if got := w.run(true, text); got != want {
		t.Error(got)
	}
}

// TestWarmPagesAreToldByAll: also by a module after which the interpreter ends as any does; and what a module has put in the place of Python's own
// functions is not what tells of them.
func TestWarmPagesAreToldByAll(t *testing.T) {
	w := newWarming(t)
	for name, module := range map[string]string{
		"a thread": "import threading\nover = threading.Event()\nthreading.Thread(target=over.wait).start()\nover.set()\nprint('ran')",
		"another open": "import builtins, os\nprint('ran', flush=True)\n" +
			"def refused(*all, **more):\n    raise RuntimeError('refused')\nbuiltins.open = os.open = os.pread = refused",
		"no memory":   "import resource\nprint('ran', flush=True)\nresource.setrlimit(resource.RLIMIT_AS, (1 << 20, 1 << 20))",
		"no readable": "import resource\nprint('ran', flush=True)\nresource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))",
	} {
		text := program(t, module, "", map[string]string{"ansible/module_utils/name.py": "# " + name})
		for range 3 {
			if warm, cold := w.run(true, text), w.run(false, text); warm != cold || !strings.HasPrefix(warm, "0|ran") {
				t.Errorf("%s: warm %q, cold %q", name, warm, cold)
			}
		}
	}
}

// ownBytes is what memory a process has that it has written to, and shares with nobody.
func ownBytes(t *testing.T, id int) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", id))
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(`Private_Dirty:\s+(\d+) kB`).FindSubmatch(text)
	if found == nil {
		t.Fatalf("%s", text)
	}
	size, _ := strconv.Atoi(string(found[1]))
	return size << 10
}

// TestAKnownArchiveIsNotLookedAt: what came by its hash was looked at when it came. Whatever else is in its place is looked at as ever.
func TestAKnownArchiveIsNotLookedAt(t *testing.T) {
	w := newWarming(t)
	text := program(t, "print('ran')", "", nil)
	_, archive, _ := archiveIn([]byte(text), nil)
	other := bytes.Clone(archive)
	other[len(other)/2] = '!'
	damaged := strings.Replace(text, string(archive), string(other), 1)
	for _, known := range [][]byte{nil, archive, other[:len(other)-1]} {
		if _, got, _ := archiveIn([]byte(text), known); !bytes.Equal(got, archive) {
			t.Errorf("%d bytes known: %d bytes", len(known), len(got))
		}
		if _, got, _ := archiveIn([]byte(damaged), known); got != nil {
			t.Errorf("%d bytes known: what is no base64", len(known))
		}
	}
	hash := w.table.warm.remember(archive)
	for _, named := range []Archive{{}, {hash, archive}, {"another", archive[1:]}} {
		p := w.start(true, text, func(r *Request) { r.Archive = named })
		if s := p.Await(t.Context(), long, nil); !s.Ended || s.ExitCode != 0 || output(t, p, s)[0] != "ran\n" {
			t.Errorf("%+v: %+v", named.Hash, s)
		}
		if w.table.Archive("another") != nil || !slices.Equal(w.table.warm.hashes, []string{hash}) {
			t.Errorf("%s: it keeps %v", named.Hash, w.table.warm.hashes)
		}
	}
}

// TestWarmSpareOfYesterday: what a process goes by has changed since its interpreter began.
func TestWarmSpareOfYesterday(t *testing.T) {
	w := newWarming(t)
	folder := t.TempDir()
	text := program(t, "import os\nprint(os.getppid())", "", nil)
	with := func(r *Request) { r.Environment = []Variable{{"PYTHONPATH", folder}} }
	run := func() string {
		p := w.start(true, text, with)
		s := p.Await(t.Context(), long, nil)
		got := output(t, p, s)
		_ = w.table.Release(p)
		return got[0]
	}
	first := run()
	if again := run(); again != first {
		t.Fatal(again, first)
	}
	for deadline := time.Now().Add(long); ; time.Sleep(10 * time.Millisecond) {
		waits := false
		for _, i := range w.table.warm.interpreters {
			i.waiting.Lock()
			waits = len(i.spares) == 1
			i.waiting.Unlock()
		}
		if waits {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("nobody waits")
		}
	}
	if err := os.WriteFile(filepath.Join(folder, "new.py"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if run() == first {
		t.Error("by an interpreter that began before")
	}
}

// TestWarmIsNotKeptByStrangers has others come to the socket, which say nothing.
func TestWarmIsNotKeptByStrangers(t *testing.T) {
	w := newWarming(t)
	var strangers []int
	over := make(chan struct{})
	stop := make(chan struct{})
	go func() {
		defer close(over)
		for {
			select {
			case <-stop:
				return
			default:
			}
			raw, _ := os.ReadFile("/proc/net/unix")
			for line := range strings.Lines(string(raw)) {
				fields := strings.Fields(line)
				if name, ok := strings.CutPrefix(fields[len(fields)-1], "@sojourn-"); ok && len(strangers) == 0 {
					for range 15 {
						s, _ := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
						if unix.Connect(s, &unix.SockaddrUnix{Name: "@sojourn-" + name}) == nil {
							strangers = append(strangers, s)
						} else {
							unix.Close(s)
						}
					}
				}
			}
		}
	}()
	begin := time.Now()
	got := w.run(true, program(t, "print(1)", "", nil))
	if took := time.Since(begin); got != "0|1\n|" || took > 12*time.Second {
		t.Errorf("%q after %v", got, took)
	}
	close(stop)
	<-over
	if len(strangers) == 0 {
		t.Error("no stranger came")
	}
	for _, s := range strangers {
		unix.Close(s)
	}
}

// TestWarmSaysWhatItsCommandLineSays: ansible-core looks for it.
func TestWarmSaysWhatItsCommandLineSays(t *testing.T) {
	w := newWarming(t)
	text := program(t, "print(1)", "", nil)
	for _, warm := range []bool{false, true, true} {
		p := w.start(warm, text, func(r *Request) {
			r.CommandLine = "/bin/sh -c 'echo BECOME-SUCCESS-" + "abcd" + " ; " + python(t) + "'"
		})
		s := p.Await(t.Context(), long, nil)
		if got := output(t, p, s); got[0] != "BECOME-SUCCESS-abcd\n1\n" {
			t.Errorf("warm: %v: %q", warm, got)
		}
	}
}

func alive(id int) bool {
	raw, err := os.ReadFile("/proc/" + strconv.Itoa(id) + "/stat")
	return err == nil && !strings.Contains(string(raw), ") Z ")
}

// TestWarmEnds looks for what is left of interpreters, while a process that was begun by one goes on.
func TestWarmEnds(t *testing.T) {
	w := newWarming(t)
	p := w.start(true, program(t, "import time\nprint(1, flush=True)\ntime.sleep(600)", "", nil), nil)
	for deadline := time.Now().Add(long); p.Await(t.Context(), long, &[2]int64{}).Ends[0] == 0; {
		if time.Now().After(deadline) {
			t.Fatal("it says nothing")
		}
	}
	var all []int
	for _, i := range w.table.warm.interpreters {
		all = append(all, descendants(i.tree.process.Pid)...)
	}
	own := p.child.processID()
	w.table.End()
	for deadline := time.Now().Add(long); ; time.Sleep(10 * time.Millisecond) {
		left := 0
		for _, id := range all {
			if id != own && alive(id) {
				left++
			}
		}
		if left == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d of %d are there", left, len(all))
		}
	}
	if !alive(own) {
		t.Error("the module did not go on")
	}
	_ = unix.Kill(own, unix.SIGKILL)
}

func TestWarmSettingsAreTold(t *testing.T) {
	base := &setting{who: account.Current(), directory: "/", environment: []string{"A=1"}, arguments: []string{"sh", "-c", "sudo echo BECOME-SUCCESS-abc; python"}, program: "/bin/sh"}
	same, other := *base, *base
	same.arguments = []string{"sh", "-c", "sudo echo BECOME-SUCCESS-xyz; python"}
	other.environment = []string{"A=2"}
	if base.key() != same.key() || base.key() == other.key() {
		t.Error(base.key(), same.key(), other.key())
	}
}

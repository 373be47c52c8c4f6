package process

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sojourn.example/agent/internal/catalogue"
)

const long = 20 * time.Second // a deadline that a test meets only when it fails

func run(t *testing.T, r *Request) (*Table, *Process) {
	t.Helper()
	table := NewTable(t.TempDir(), nil)
	t.Cleanup(table.End)
	p, err := table.Start(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	return table, p
}

func output(t *testing.T, p *Process, s Snapshot) (text [2]string) {
	t.Helper()
	for stream := range text {
		var out bytes.Buffer
		if err := p.Output(stream, &out, 0, s.Ends[stream]); err != nil {
			t.Fatal(err)
		}
		text[stream] = out.String()
	}
	return text
}

func TestOutputAndExitCode(t *testing.T) {
	_, p := run(t, &Request{CommandLine: "echo out; echo err >&2; exit 7"})
	s := p.Await(t.Context(), long, nil)
	if got := output(t, p, s); !s.Ended || s.ExitCode != 7 || got != [2]string{"out\n", "err\n"} {
		t.Errorf("%+v %q", s, got)
	}
}

func TestArgumentsAreNotInterpreted(t *testing.T) {
	_, p := run(t, &Request{Arguments: []string{"printf", "[%s]", "a b", "$HOME", `"`, ""}})
	if got := output(t, p, p.Await(t.Context(), long, nil)); got[0] != `[a b][$HOME]["][]` {
		t.Error(got)
	}
}

func TestEnvironmentIsThatOfALogin(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "/the/agent's/own")
	_, p := run(t, &Request{Arguments: []string{"env"}, Environment: []Variable{{"GREETING", "grüß dich"}, {"PATH", "/usr/bin:/bin"}}})
	got := output(t, p, p.Await(t.Context(), long, nil))[0]
	for _, want := range []string{"\nUSER=", "\nSHELL=/", "\nGREETING=grüß dich\n", "\nPATH=/usr/bin:/bin\n"} {
		if !strings.Contains("\n"+got, want) {
			t.Errorf("%q is not in %q", want, got)
		}
	}
	if strings.Contains(got, "NOTIFY_SOCKET") || strings.Count(got, "PATH=") != 1 {
		t.Error(got)
	}
}

func TestSignalledExitCode(t *testing.T) {
	_, p := run(t, &Request{CommandLine: "kill -9 $$"})
	if s := p.Await(t.Context(), long, nil); s.ExitCode != 137 {
		t.Error(s.ExitCode)
	}
}

func TestInputIsReadToItsEnd(t *testing.T) {
	text := strings.Repeat("0123456789", 200000) // beyond memory, pipe and buffer
	_, p := run(t, &Request{CommandLine: "cat", Input: strings.NewReader(text)})
	if got := output(t, p, p.Await(t.Context(), long, nil))[0]; got != text {
		t.Errorf("%d bytes came back of %d", len(got), len(text))
	}
}

func TestInputThatNobodyReads(t *testing.T) {
	_, p := run(t, &Request{CommandLine: "true", Input: strings.NewReader(strings.Repeat("x", 1<<20))})
	if s := p.Await(t.Context(), long, nil); !s.Ended || s.ExitCode != 0 {
		t.Errorf("%+v", s)
	}
}

func TestInputKeptOpen(t *testing.T) {
	_, p := run(t, &Request{CommandLine: "read a; echo got $a; read b; echo got $b; cat", Input: strings.NewReader("one\n"), KeepInputOpen: true})
	s := p.Await(t.Context(), long, &[2]int64{})
	if got := output(t, p, s)[0]; got != "got one\n" {
		t.Fatalf("%q", got)
	}
	if n, err := p.Write(t.Context(), strings.NewReader("two\nrest"), false); n != 8 || err != nil {
		t.Fatal(n, err)
	}
	if n, err := p.Write(t.Context(), nil, true); n != 0 || err != nil {
		t.Fatal(n, err)
	}
	s = p.Await(t.Context(), long, nil)
	if got := output(t, p, s)[0]; got != "got one\ngot two\nrest" || !s.Ended {
		t.Errorf("%q", got)
	}
	if n, err := p.Write(t.Context(), strings.NewReader("late"), false); n != 0 || err != nil {
		t.Error("an ended process took input", n, err)
	}
}

func TestReadingAgainGivesTheSame(t *testing.T) {
	_, p := run(t, &Request{CommandLine: "echo one; echo two"})
	s := p.Await(t.Context(), long, nil)
	for range 3 {
		if got := output(t, p, s)[0]; got != "one\ntwo\n" {
			t.Errorf("%q", got)
		}
		p.Await(t.Context(), 0, &[2]int64{4, 0})
	}
	if !p.Kept(0, 0) || p.Kept(0, 9) || p.Kept(0, -1) {
		t.Error("the wrong offsets are kept")
	}
}

func TestWaitingIsForNews(t *testing.T) {
	_, p := run(t, &Request{CommandLine: "echo one; read x; echo two", KeepInputOpen: true})
	s := p.Await(t.Context(), long, &[2]int64{})
	if s.Ends[0] != 4 || s.Ended {
		t.Fatalf("%+v", s)
	}
	began := time.Now()
	if s = p.Await(t.Context(), 50*time.Millisecond, &[2]int64{4, 0}); s.Ends[0] != 4 || time.Since(began) < 50*time.Millisecond {
		t.Errorf("%+v after %v", s, time.Since(began))
	}
	gone, leave := context.WithCancel(t.Context())
	leave()
	p.Await(gone, long, &[2]int64{4, 0}) // a client that has gone is not waited for
	if _, err := p.Write(t.Context(), strings.NewReader("\n"), false); err != nil {
		t.Fatal(err)
	}
	if s = p.Await(t.Context(), long, &[2]int64{4, 0}); s.Ends[0] != 8 {
		t.Errorf("%+v", s)
	}
}

func TestBackgroundChildDoesNotHoldTheEnd(t *testing.T) {
	began := time.Now()
	_, p := run(t, &Request{CommandLine: "echo $$; sleep 60 & echo $!", SafeToKill: true})
	s := p.Await(t.Context(), long, nil)
	if !s.Ended || s.ExitCode != 0 || time.Since(began) > 10*time.Second {
		t.Fatalf("%+v after %v", s, time.Since(began))
	}
	ids := strings.Fields(output(t, p, s)[0])
	background, _ := strconv.Atoi(ids[1])
	defer func() { _ = unix.Kill(background, unix.SIGKILL) }()
	if unix.Kill(background, 0) != nil {
		t.Error("the background child was killed")
	}
	// A signal for a process that has ended must reach nobody.
	if err := p.Signal(Kill, true); err != nil || unix.Kill(background, 0) != nil {
		t.Error("the background child was killed after its parent's end", err)
	}
}

// treeCommand starts a process, a child of it, and one in a session of its own; each holds the lock file open and notes its id.
func treeCommand(file string) string {
	one := fmt.Sprintf("echo $$ >> %s; exec sleep 60", file)
	return fmt.Sprintf("sh -c '%s' & setsid sh -c '%s' & echo $$ >> %s; echo begun; sleep 61; true", one, one, file)
}

// allEnded waits until none of the processes noted in the file is there any more (a zombie is none).
func allEnded(t *testing.T, file string, number int) {
	t.Helper()
	raw, _ := os.ReadFile(file)
	ids := strings.Fields(string(raw))
	if len(ids) != number {
		t.Fatalf("noted are %v", ids)
	}
	for _, id := range ids {
		number, _ := strconv.Atoi(id)
		process, err := unix.PidfdOpen(number, 0)
		if err != nil {
			continue
		}
		defer unix.Close(process)
		if n, _ := unix.Poll([]unix.PollFd{{Fd: int32(process), Events: unix.POLLIN}}, 20000); n != 1 {
			t.Errorf("process %s still runs", id)
			_ = unix.Kill(number, unix.SIGKILL)
		}
	}
}

// noted waits until so many processes have noted their ids.
func noted(t *testing.T, p *Process, file string, number int) {
	t.Helper()
	p.Await(t.Context(), long, &[2]int64{})
	for deadline := time.Now().Add(long); ; {
		if raw, _ := os.ReadFile(file); bytes.Count(raw, []byte("\n")) >= number || time.Now().After(deadline) {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

func TestTimeoutKillsTheTree(t *testing.T) {
	file := filepath.Join(t.TempDir(), "ids")
	_, p := run(t, &Request{CommandLine: treeCommand(file), Timeout: 5 * time.Second})
	noted(t, p, file, 3)
	s := p.Await(t.Context(), long, nil)
	if !s.Ended || !s.TimedOut || s.ExitCode != 137 {
		t.Errorf("%+v", s)
	}
	allEnded(t, file, 3)
}

func TestSignalTheTree(t *testing.T) {
	for _, name := range []string{Terminate, Kill} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "ids")
			_, p := run(t, &Request{CommandLine: treeCommand(file)})
			noted(t, p, file, 3)
			if err := p.Signal(name, true); err != nil {
				t.Fatal(err)
			}
			if s := p.Await(t.Context(), long, nil); !s.Ended || s.TimedOut {
				t.Errorf("%+v", s)
			}
			allEnded(t, file, 3)
		})
	}
}

func TestInterrupt(t *testing.T) {
	_, p := run(t, &Request{CommandLine: "trap 'echo caught; exit 5' INT; echo ready; while :; do sleep 0.05; done"})
	p.Await(t.Context(), long, &[2]int64{})
	if err := p.Signal(Interrupt, false); err != nil {
		t.Fatal(err)
	}
	s := p.Await(t.Context(), long, nil)
	if got := output(t, p, s)[0]; s.ExitCode != 5 || got != "ready\ncaught\n" {
		t.Errorf("%+v %q", s, got)
	}
}

func TestRelease(t *testing.T) {
	table, p := run(t, &Request{CommandLine: "read x", KeepInputOpen: true})
	if err := table.Release(p); err == nil {
		t.Error("a running process was released")
	}
	if found, err := table.Find(p.Handle); found != p || err != nil {
		t.Error(found, err)
	}
	if _, err := p.Write(t.Context(), nil, true); err != nil {
		t.Error(err)
	}
	p.Await(t.Context(), long, nil)
	if err := table.Release(p); err != nil {
		t.Error(err)
	}
	wantCode(t, "SD-705", func() error { _, err := table.Find(p.Handle); return err })
}

func wantCode(t *testing.T, code string, do func() error) {
	t.Helper()
	err := do()
	if known, ok := errors.AsType[*catalogue.Error](err); !ok || known.Code != code {
		t.Errorf("got %v, want %s", err, code)
	}
}

func TestNotStarted(t *testing.T) {
	folder := t.TempDir()
	script := filepath.Join(folder, "script")
	if err := os.WriteFile(script, []byte("no program"), 0o755); err != nil {
		t.Fatal(err)
	}
	table := NewTable(folder, nil)
	for name, c := range map[string]struct {
		code string
		r    Request
	}{
		"no such program": {"SD-701", Request{Arguments: []string{"no-such-program"}}},
		"no such path":    {"SD-701", Request{Arguments: []string{"/no/such/program"}}},
		"a folder":        {"SD-701", Request{Arguments: []string{folder}}},
		"no program":      {"SD-701", Request{Arguments: []string{script}}},
		"no such user":    {"SD-702", Request{CommandLine: "true", User: "no-such-user"}},
		"a user's option": {"SD-702", Request{CommandLine: "true", User: "-x"}},
		"no such folder":  {"SD-706", Request{CommandLine: "true", Directory: "/no/such/folder"}},
		"folder is none":  {"SD-706", Request{CommandLine: "true", Directory: script}},
		"bad variable":    {"SD-504", Request{CommandLine: "true", Environment: []Variable{{"A=B", "c"}}}},
	} {
		t.Run(name, func(t *testing.T) {
			wantCode(t, c.code, func() error { _, err := table.Start(t.Context(), &c.r); return err })
		})
	}
	if _, running := table.Unfinished(); running != 0 || len(table.byID) != 0 {
		t.Error("what did not start is kept")
	}
}

func TestUnfinishedAndEnd(t *testing.T) {
	table := NewTable(t.TempDir(), nil)
	keep, err := table.Start(t.Context(), &Request{CommandLine: "read x", KeepInputOpen: true})
	if err != nil {
		t.Fatal(err)
	}
	kill, err := table.Start(t.Context(), &Request{CommandLine: "sleep 60", SafeToKill: true})
	if err != nil {
		t.Fatal(err)
	}
	outlives, err := table.Start(t.Context(), &Request{CommandLine: "exec sleep 60", MayOutlive: true})
	if err != nil {
		t.Fatal(err)
	}
	changed, running := table.Unfinished()
	if running != 1 || table.Close() {
		t.Error(running)
	}
	_, _ = keep.Write(t.Context(), nil, true)
	select {
	case <-changed:
	case <-time.After(long):
		t.Fatal("nobody was told")
	}
	keep.Await(t.Context(), long, nil)
	if _, running = table.Unfinished(); running != 0 {
		t.Error(running)
	}
	if !table.Close() {
		t.Error("it is kept from ending by what it need not wait for")
	}
	id := outlives.child.processID()
	table.End()
	if s := kill.Await(t.Context(), long, nil); !s.Ended || s.ExitCode != 137 {
		t.Errorf("%+v", s)
	}
	if err := unix.Kill(id, unix.SIGKILL); err != nil {
		t.Error("it was ended with the agent:", err)
	}
	wantCode(t, "SD-503", func() error { _, err := table.Start(t.Context(), &Request{CommandLine: "true"}); return err })
}

func TestOnceTheEndIsAskedForNothingOutlives(t *testing.T) {
	table := NewTable(t.TempDir(), nil)
	outlives, err := table.Start(t.Context(), &Request{CommandLine: "sleep 60", MayOutlive: true})
	if err != nil {
		t.Fatal(err)
	}
	keep, err := table.Start(t.Context(), &Request{CommandLine: "read x", KeepInputOpen: true})
	if err != nil {
		t.Fatal(err)
	}
	table.KillOutliving()
	if s := outlives.Await(t.Context(), long, nil); !s.Ended || s.ExitCode != 137 {
		t.Errorf("%+v", s)
	}
	if _, running := table.Unfinished(); running != 1 {
		t.Error("what is waited for was killed too")
	}
	_, _ = keep.Write(t.Context(), nil, true)
	keep.Await(t.Context(), long, nil)
	table.End()
}

func TestOutputThatNobodyReadsHoldsNothingUp(t *testing.T) {
	// More than is kept of it: while a client is there it is waited for, however long.
	table, p := run(t, &Request{CommandLine: "head -c 700000 /dev/zero; echo end"})
	for _, s := range p.output {
		s.mu.Lock()
		s.bound = 0
		s.mu.Unlock()
	}
	if s := p.Await(t.Context(), 500*time.Millisecond, nil); s.Ended {
		t.Fatal("it did not wait for its reader")
	}
	table.SetUnread(true)
	s := p.Await(t.Context(), long, nil)
	if !s.Ended || s.ExitCode != 0 || s.Ends[0] != 700004 {
		t.Fatalf("%+v", s)
	}
	var out bytes.Buffer
	if err := p.Output(0, &out, s.Ends[0]-4, s.Ends[0]); err != nil || out.String() != "end\n" {
		t.Errorf("the newest output is not there: %q, %v", out.String(), err)
	}
	if p.Kept(0, 0) {
		t.Error("it says that it kept all")
	}
}

// TestInputWithoutDisk: a module of Ansible's is some hundred kilobytes, and must run where nothing can be spooled.
func TestInputWithoutDisk(t *testing.T) {
	table := NewTable(filepath.Join(t.TempDir(), "is not there"), nil)
	start := func(size int) (*Process, error) {
		return table.Start(t.Context(), &Request{CommandLine: "cksum", Input: bytes.NewReader(bytes.Repeat([]byte("0123456789abcdef"), size/16))})
	}
	p, err := start(8 << 20)
	if err != nil {
		t.Fatal(err)
	}
	s := p.Await(t.Context(), long, nil)
	if got := output(t, p, s); !s.Ended || !strings.HasSuffix(got[0], " 8388608\n") {
		t.Errorf("%+v %q", s, got)
	}
	wantCode(t, "SD-402", func() error { _, err := start(needBytes + 16); return err })
}

func TestStoreSpoolsAndBeginsAnew(t *testing.T) {
	folder := t.TempDir()
	s := newStore(folder, 64<<10)
	data := bytes.Repeat([]byte("0123456789abcdef"), (memoryBytes+64<<10)/16)
	full := make(chan bool)
	go func() { full <- s.append(append(bytes.Clone(data), "more"...), nil) }()
	var got bytes.Buffer
	for int64(got.Len()) < int64(len(data)) {
		end, _ := s.state()
		if err := s.copyTo(&got, int64(got.Len()), end); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(got.Bytes(), data) {
		t.Error("the bytes came back changed")
	}
	select {
	case <-full:
		t.Fatal("more was taken than there is room for")
	case <-time.After(20 * time.Millisecond):
	}
	if entries, _ := os.ReadDir(folder); len(entries) != 0 {
		t.Error("the spool has a name", entries)
	}
	s.received(int64(len(data))) // all has been read: there is room again
	if !<-full {
		t.Error("not appended")
	}
	got.Reset()
	end, _ := s.state()
	if err := s.copyTo(&got, int64(len(data)), end); err != nil || got.String() != "more" {
		t.Errorf("%q, %v", got.String(), err)
	}
	if err := s.copyTo(io.Discard, 0, end); !errors.Is(err, errNotKept) {
		t.Error(err)
	}
	s.release()
	if s.append([]byte("x"), nil) {
		t.Error("a released store took bytes")
	}
}

func TestDescendants(t *testing.T) {
	_, p := run(t, &Request{CommandLine: "sleep 60 & sleep 60 & echo x; wait", SafeToKill: true})
	p.Await(t.Context(), long, &[2]int64{})
	if ids := descendants(p.child.(*tree).process.Pid); len(ids) != 3 {
		t.Error(ids)
	}
}

func TestLookPath(t *testing.T) {
	if got, err := lookPath("sh", "/", []string{"PATH=/nowhere:/bin"}); got != "/bin/sh" || err != nil {
		t.Error(got, err)
	}
	if _, err := lookPath("sh", "/", []string{"PATH=/nowhere"}); err == nil {
		t.Error("found outside of the PATH")
	}
}

func TestAsAnotherUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: only root may become another user")
	}
	_, p := run(t, &Request{CommandLine: "id -un; id -G; echo $HOME; pwd; cat /proc/self/loginuid >/dev/null; cat /etc/shadow", User: "nobody"})
	s := p.Await(t.Context(), long, nil)
	got := output(t, p, s)
	if lines := strings.Split(got[0], "\n"); lines[0] != "nobody" || strings.Contains(" "+lines[1]+" ", " 0 ") || s.ExitCode == 0 {
		t.Errorf("%+v %q", s, got)
	}
}

func TestAHandleThatWasReleasedIsNotStartedAgain(t *testing.T) {
	table, first := run(t, &Request{Handle: "ab", CommandLine: "exit 3"})
	first.Await(t.Context(), long, nil)
	if again, err := table.Start(t.Context(), &Request{Handle: "ab", CommandLine: "exit 4"}); err != nil || again != first {
		t.Error(again, err)
	}
	if err := table.Release(first); err != nil {
		t.Fatal(err)
	}
	var e *catalogue.Error
	if again, err := table.Start(t.Context(), &Request{Handle: "ab", CommandLine: "exit 4"}); !errors.As(err, &e) || e.Code != "SD-705" {
		t.Error(again, err)
	}
}

func TestCloseIsRefusedWhileSomethingRuns(t *testing.T) {
	table, p := run(t, &Request{CommandLine: "read x", KeepInputOpen: true})
	if table.Close() {
		t.Error("it closed while an installation ran")
	}
	if _, err := p.Write(t.Context(), strings.NewReader("\n"), true); err != nil {
		t.Fatal(err)
	}
	p.Await(t.Context(), long, nil)
	if !table.Close() {
		t.Error("it did not close")
	}
	var e *catalogue.Error
	if _, err := table.Start(t.Context(), &Request{CommandLine: "true"}); !errors.As(err, &e) || e.Code != "SD-503" {
		t.Error(err)
	}
}

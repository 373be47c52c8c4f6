package process

import (
	"strings"
	"testing"
)

func answered(t *testing.T, p *Process, text string) {
	t.Helper()
	if n, err := p.Answer(t.Context(), strings.NewReader(text)); n != int64(len(text)) || err != nil {
		t.Fatal(n, err)
	}
}

func TestTerminalIsAskedAndAnswered(t *testing.T) {
	_, p := run(t, &Request{
		CommandLine: "printf 'password: ' >/dev/tty; read -r x </dev/tty; echo got $x; cat; echo done >&2",
		Terminal:    true, KeepInputOpen: true,
	})
	s := p.Await(t.Context(), long, &[2]int64{})
	if got := output(t, p, s); got != [2]string{"", "password: "} {
		t.Fatalf("%q", got)
	}
	answered(t, p, "secret\n")
	if s = p.Await(t.Context(), long, &[2]int64{0, s.Ends[1]}); output(t, p, s)[0] != "got secret\n" {
		t.Fatalf("%q", output(t, p, s))
	}
	answered(t, p, "to the standard input: it was not the terminal that spoke last\n")
	if _, err := p.Write(t.Context(), strings.NewReader("rest"), true); err != nil {
		t.Fatal(err)
	}
	s = p.Await(t.Context(), long, nil)
	want := [2]string{"got secret\nto the standard input: it was not the terminal that spoke last\nrest", "password: done\n"}
	if got := output(t, p, s); got != want || !s.Ended { // what was typed is not repeated
		t.Errorf("%+v %q", s, got)
	}
	if n, err := p.Answer(t.Context(), strings.NewReader("late\n")); n != 0 || err != nil {
		t.Error("an ended process took an answer", n, err)
	}
}

func TestTerminalIsNotAmongTheStreams(t *testing.T) {
	var seen [2]string
	for i, terminal := range []bool{false, true} {
		_, p := run(t, &Request{CommandLine: "for f in 0 1 2 3 4; do [ -t $f ] && echo $f is one; done; ls /proc/self/fd", Terminal: terminal})
		seen[i] = output(t, p, p.Await(t.Context(), long, nil))[0]
	}
	if seen[0] != seen[1] || seen[0] == "" {
		t.Errorf("%q", seen)
	}
	_, p := run(t, &Request{CommandLine: "echo there >/dev/tty", Terminal: true})
	if got := output(t, p, p.Await(t.Context(), long, nil)); got != [2]string{"", "there\n"} {
		t.Errorf("%q", got)
	}
	_, p = run(t, &Request{CommandLine: "echo x >/dev/tty"})
	if s := p.Await(t.Context(), long, nil); s.ExitCode == 0 {
		t.Error("there is a terminal that nobody asked for")
	}
}

func TestTerminalTakesALine(t *testing.T) {
	_, p := run(t, &Request{CommandLine: "printf x >/dev/tty; read -r x </dev/tty; printf %s \"$x\" | wc -c", Terminal: true, KeepInputOpen: true})
	p.Await(t.Context(), long, &[2]int64{})
	if _, err := p.Answer(t.Context(), strings.NewReader(strings.Repeat("x", maximumAnswer)+"\n")); err == nil || !strings.Contains(err.Error(), "longer") {
		t.Error(err)
	}
	answered(t, p, strings.Repeat("x", maximumAnswer-1)+"\n")
	if got := output(t, p, p.Await(t.Context(), long, nil))[0]; strings.TrimSpace(got) != "4094" {
		t.Error(got)
	}
}

func TestTerminalEndsWithItsProcess(t *testing.T) {
	_, p := run(t, &Request{CommandLine: "setsid sleep 60 </dev/null >/dev/null 2>&1 & echo on", Terminal: true, SafeToKill: true})
	if s := p.Await(t.Context(), long, nil); !s.Ended || output(t, p, s)[0] != "on\n" {
		t.Errorf("%+v", s)
	}
	p.child.kill()
	if _, err := p.terminal.ours.Write([]byte("x")); err == nil {
		p.pipes.Wait() // its reader closes it
		if _, err := p.terminal.ours.Write([]byte("x")); err == nil {
			t.Error("the terminal is still open")
		}
	}
}

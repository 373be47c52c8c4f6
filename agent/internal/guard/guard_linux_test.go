package guard

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"sojourn.example/agent/internal/config"
	"sojourn.example/agent/internal/firewall"
)

type wall struct {
	rules []firewall.Rule
	fails error
}

func (*wall) Kind() string                                      { return firewall.KindNftables }
func (*wall) Open(firewall.Rule) ([]firewall.Rule, bool, error) { return nil, false, nil }
func (w *wall) List() ([]firewall.Rule, error)                  { return w.rules, nil }
func (w *wall) Close(match func(firewall.Rule) bool) (bool, error) {
	before := len(w.rules)
	w.rules = slices.DeleteFunc(w.rules, match)
	return len(w.rules) < before, w.fails
}

type lines []string

func (l *lines) Say(_ bool, text string) { *l = append(*l, text) }

// begin has a guard hear these words; it gives what is left then.
func begin(t *testing.T, folder string, words ...string) (*guarding, *wall, *lines, bool) {
	t.Helper()
	w := &wall{rules: []firewall.Rule{{Name: "sojourn-0123456789ab"}, {Name: "sojourn-0123456789ab-tcp-80"}, {Name: "sojourn-ba9876543210"}, {Name: "sojourn-kept-tcp-80"}}}
	said := &lines{}
	g := &guarding{walls: w, log: said}
	text := fmt.Sprintf(`{"charge":{"run":"0123456789ab","folder":%q,"service_kind":"daemon"}}`, folder) + strings.Join(words, "\n")
	return g, w, said, g.listen(strings.NewReader(text))
}

func folderOf(t *testing.T) string {
	t.Helper()
	folder := filepath.Join(t.TempDir(), "sojourn-0123456789ab")
	if err := os.MkdirAll(filepath.Join(folder, "inner"), 0o700); err != nil {
		t.Fatal(err)
	}
	return folder
}

func TestDoneIsNothingToDo(t *testing.T) {
	if _, _, said, done := begin(t, folderOf(t), `{"running":[]}`, `{"done":true}`); !done || len(*said) != 0 {
		t.Error(*said)
	}
	g := &guarding{}
	if !g.listen(strings.NewReader("")) {
		t.Error("a guard without a charge has one")
	}
}

func TestAWordThatIsCutOffIsNoWord(t *testing.T) {
	if _, _, _, done := begin(t, folderOf(t), `{"done":tr`); done {
		t.Error("half a word was taken for all")
	}
}

func TestItTakesBackWhatIsItsRuns(t *testing.T) {
	folder := folderOf(t)
	g, w, said, done := begin(t, folder)
	if done || g.takeBack() != 0 {
		t.Error(done, *said)
	}
	if _, err := os.Lstat(folder); !os.IsNotExist(err) {
		t.Error("the folder is left", err)
	}
	if len(w.rules) != 2 || w.rules[0].Name != "sojourn-ba9876543210" {
		t.Error(w.rules)
	}
	want := []string{
		"Run 0123456789ab: the agent ended without removing itself: it was killed, or it crashed. Its guard does it.",
		"Run 0123456789ab: the guard removed the firewall rule sojourn-0123456789ab, the folder " + folder + ".",
	}
	if !slices.Equal(*said, want) {
		t.Errorf("%q", *said)
	}
}

func TestWhatItCannotRemoveIsTold(t *testing.T) {
	folder := folderOf(t)
	g, w, said, _ := begin(t, folder)
	w.fails = io.ErrUnexpectedEOF
	synctest.Test(t, func(t *testing.T) {
		if g.takeBack() != 1 {
			t.Error("it says that all is gone")
		}
	})
	last := (*said)[len(*said)-1]
	if !strings.Contains(last, "could not remove: the firewall rule sojourn-0123456789ab (unexpected EOF); the folder "+folder+" (it tells of that).") {
		t.Errorf("%q", *said)
	}
	if entries, _ := os.ReadDir(folder); len(entries) != 1 || entries[0].Name() != config.LeftName {
		t.Error(entries)
	}
}

func TestAToolThatRecoversIsAskedAgain(t *testing.T) {
	folder := folderOf(t)
	g, w, said, _ := begin(t, folder)
	w.fails = io.ErrUnexpectedEOF
	synctest.Test(t, func(t *testing.T) {
		time.AfterFunc(10*time.Second, func() { w.fails = nil })
		if g.takeBack() != 0 {
			t.Error(*said)
		}
	})
	if _, err := os.Lstat(folder); !os.IsNotExist(err) {
		t.Error("the folder is left", err)
	}
}

func TestAnotherAgentsThingsAreNotItsOwn(t *testing.T) {
	folder := folderOf(t)
	g, w, said, _ := begin(t, folder)
	if err := os.Rename(folder, folder+"-old"); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	if g.takeBack() != 0 || len(w.rules) != 4 || len(*said) != 0 {
		t.Error(w.rules, *said)
	}
	if _, err := os.Lstat(folder); err != nil {
		t.Error(err)
	}
	// Where there is none at all, only the rules are left to take back.
	if err := os.Remove(folder); err != nil {
		t.Fatal(err)
	}
	if g.takeBack() != 0 || len(w.rules) != 2 {
		t.Error(w.rules, *said)
	}
}

func TestProcesses(t *testing.T) {
	start := func(script string) (*exec.Cmd, io.Closer) {
		command := exec.Command("/bin/sh", "-c", script)
		input, err := command.StdinPipe()
		if err == nil {
			err = command.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		return command, input
	}
	folder := folderOf(t)
	flash, goOn := start("read x; cd " + folder + " && touch " + folder + "-done")
	helper, _ := start("exec sleep 60")
	ended, _ := start("exit")
	_ = ended.Wait()
	word := func(command *exec.Cmd, name string, safe bool) string {
		return fmt.Sprintf(`{"handle":"%x","process_id":%d,"name":%q,"safe_to_kill":%v}`, command.Process.Pid, command.Process.Pid, name, safe)
	}
	g, _, said, _ := begin(t, folder,
		`{"running":[`+word(flash, "flash", false)+`]}`,
		`{"running":[`+word(flash, "flash", false)+`,`+word(helper, "helper", true)+`,`+word(ended, "ended", false)+`]}`)
	if len(g.running) != 2 {
		t.Error("what has ended is watched", g.running)
	}
	go func() { _ = helper.Wait() }()
	over := make(chan int)
	go func() { over <- g.takeBack() }()
	goOn.Close()
	_ = flash.Wait()
	if <-over != 0 {
		t.Error(*said)
	}
	if _, err := os.Lstat(folder + "-done"); err != nil {
		t.Error("the installation was interrupted", err)
	}
	text := strings.Join(*said, "\n")
	for _, want := range []string{"helper was killed: it was marked as safe to kill", "the guard removed"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in %q", want, text)
		}
	}
}

func TestOldKernels(t *testing.T) {
	command := exec.Command("/bin/sleep", "60")
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	h := &held{id: command.Process.Pid, descriptor: -1, start: startOf(command.Process.Pid)}
	if h.start == "" || h.ended() {
		t.Error("it has not ended", h.start)
	}
	_ = command.Process.Kill()
	_ = command.Wait()
	if !h.ended() || startOf(command.Process.Pid) != "" {
		t.Error("it has ended")
	}
}

// A list that is older than the announcement does not have the process yet.
func TestWhatIsAnnouncedIsNotForgotten(t *testing.T) {
	sleep := func() *exec.Cmd {
		command := exec.Command("sleep", "60")
		if err := command.Start(); err != nil {
			t.Fatal(err)
		}
		return command
	}
	lasting, short := sleep(), sleep()
	word := func(handle string, command *exec.Cmd) string {
		return fmt.Sprintf(`{"coming":{"handle":%q,"process_id":%d,"name":%q,"safe_to_kill":true}}`, handle, command.Process.Pid, handle)
	}
	g, _, said, done := begin(t, folderOf(t), word("aa", lasting), word("bb", short), `{"coming":{"handle":"cc","name":"never began"}}`)
	if err := short.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = short.Wait()
	g.update(nil)
	if done || len(g.running) != 1 || g.running[0].Handle != "aa" {
		t.Error(done, g.running)
	}
	if g.takeBack() != 0 || !slices.Contains(*said, "Run 0123456789ab: aa was killed: it was marked as safe to kill.") {
		t.Errorf("%q", *said)
	}
	if err := lasting.Wait(); err == nil {
		t.Error("it was not killed")
	}
}

// Once it has been in a list it has ended when the next one lacks it.
func TestWhatWasAnnouncedEnds(t *testing.T) {
	id := os.Getpid()
	entry := fmt.Sprintf(`{"handle":"aa","process_id":%d,"name":"x","safe_to_kill":false}`, id)
	g, _, _, _ := begin(t, folderOf(t), `{"coming":`+entry+`}`, `{"running":[`+entry+`]}`)
	if len(g.running) != 1 {
		t.Error(g.running)
	}
	g.update(nil)
	if len(g.running) != 0 {
		t.Error(g.running)
	}
}

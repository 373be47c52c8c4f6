package leftovers

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"sojourn.example/agent/internal/atboot"
	"sojourn.example/agent/internal/config"
	"sojourn.example/agent/internal/lease"
)

// runAgent runs something in a run's folder that looks like an agent, started as one or as its guard.
func runAgent(t *testing.T, folder, as string) {
	t.Helper()
	shell, err := os.ReadFile("/bin/sh")
	if err != nil {
		t.Fatal(err)
	}
	path, scripts := filepath.Join(folder, "agent"), t.TempDir()
	if err := os.WriteFile(path, shell, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(scripts, as), []byte("echo begun; read x"), 0o600); err != nil {
		t.Fatal(err)
	}
	command := exec.Command(path, as)
	command.Dir = scripts
	input, err := command.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	output, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		input.Close()
		_ = command.Wait()
	})
	_, _ = output.Read(make([]byte, 8))
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	go func() { _ = command.Wait() }()
}

func record(t *testing.T, folder string, remaining time.Duration, unfinished int, boot string) {
	t.Helper()
	r := lease.NewRecord(remaining, unfinished)
	if boot != "" {
		r.BootID = boot
	}
	if err := r.Save(folder); err != nil {
		t.Fatal(err)
	}
}

func TestDeadOrAliveByTheLease(t *testing.T) {
	for name, c := range map[string]struct {
		setUp func(t *testing.T, folder string)
		state string
		why   string
	}{
		"lease running": {func(t *testing.T, f string) { runAgent(t, f, "serve"); record(t, f, 100*time.Second, 0, "") }, Live, "its lease has"},
		"lease over, installation running": {func(t *testing.T, f string) { runAgent(t, f, "serve"); record(t, f, -time.Hour, 1, "") }, Live,
			"its lease is over; it finishes an installation and then removes itself"},
		"lease just over":            {func(t *testing.T, f string) { runAgent(t, f, "serve"); record(t, f, -50*time.Second, 0, "") }, Live, "about to remove itself"},
		"lease long over":            {func(t *testing.T, f string) { runAgent(t, f, "serve"); record(t, f, -70*time.Second, 0, "") }, Removed, "hangs"},
		"no lease, but an agent":     {func(t *testing.T, f string) { runAgent(t, f, "serve") }, Live, "its agent runs"},
		"another boot's, just begun": {func(t *testing.T, f string) { runAgent(t, f, "serve"); record(t, f, time.Hour, 0, "x") }, Live, "just started"},
		"lease running, no agent":    {func(t *testing.T, f string) { record(t, f, time.Hour, 3, "") }, Removed, "no agent of it runs"},
		"another boot's, no agent":   {func(t *testing.T, f string) { record(t, f, time.Hour, 3, "x") }, Removed, "earlier boot"},
		"a guard alone":              {func(t *testing.T, f string) { runAgent(t, f, "guard"); record(t, f, time.Hour, 1, "") }, Live, "its guard waits"},
		"a damaged lease, but an agent": {func(t *testing.T, f string) {
			runAgent(t, f, "serve")
			_ = os.WriteFile(filepath.Join(f, lease.RecordName), []byte("{"), 0o600)
		}, Live, "its agent runs"},
	} {
		t.Run(name, func(t *testing.T) {
			run, folder := leave(t, false, 0)
			c.setUp(t, folder)
			all, err := Remove(Request{DryRun: true, Run: run, Firewall: &wall{}})
			if err != nil || len(all) == 0 {
				t.Fatal(all, err)
			}
			for _, l := range all {
				if l.State != c.state || !strings.Contains(l.Detail, c.why) {
					t.Errorf("%+v", l)
				}
			}
			forced, err := Remove(Request{DryRun: true, Run: run, Force: true, Firewall: &wall{}})
			if err != nil || len(forced) != len(all) || forced[0].State != Removed {
				t.Error(forced, err)
			}
		})
	}
}

func TestAHangingAgentAndItsGuardAreRemoved(t *testing.T) {
	run, folder := leave(t, false, 0)
	runAgent(t, folder, "serve")
	runAgent(t, folder, "guard")
	record(t, folder, -time.Hour, 0, "")
	all, err := Remove(Request{Firewall: &wall{}, Run: run})
	if err != nil || len(all) != 3 || !strings.HasPrefix(all[0].Name, "guard") || !strings.HasPrefix(all[1].Name, "agent") {
		t.Error(all, err)
	}
	if kinds, state := of(all, run); !slices.Equal(kinds, []string{Process, Process, Folder}) || state != Removed {
		t.Error(kinds, state)
	}
	if again, err := Remove(Request{Firewall: &wall{}, Run: run}); err != nil || len(again) != 0 {
		t.Error(again, err)
	}
}

func TestFilesForTheNextBoot(t *testing.T) {
	before := atboot.Folder
	defer func() { atboot.Folder = before }()
	atboot.Folder = t.TempDir()
	run, folder := leave(t, false, 0)
	if _, err := atboot.Write(run, folder); err != nil {
		t.Fatal(err)
	}
	foreign := filepath.Join(atboot.Folder, config.Prefix+"mine.conf")
	if err := os.WriteFile(foreign, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	all, err := Remove(Request{Firewall: &wall{}, Run: run})
	if kinds, state := of(all, run); err != nil || !slices.Equal(kinds, []string{Folder, File}) || state != Removed {
		t.Error(all, err)
	}
	if entries, _ := os.ReadDir(atboot.Folder); len(entries) != 1 {
		t.Error(entries)
	}
}

func TestAnAgentOfAnEarlierBootsLease(t *testing.T) {
	_, folder := leave(t, false, 0)
	record(t, folder, time.Hour, 0, "another boot")
	for age, want := range map[time.Duration]bool{settlingTime - time.Second: true, settlingTime + time.Second: false} {
		if alive, why := judge([]thing{{agent: true, age: age, folder: folder}}); alive != want {
			t.Error(age, alive, why)
		}
	}
	if age := age(os.Getpid()); age < 0 || age > time.Hour {
		t.Error("this test has run for", age)
	}
}

package agent

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"sojourn.example/agent/internal/lease"
	"sojourn.example/agent/internal/process"
)

// lines is a target's log.
type lines []string

func (l *lines) Say(warning bool, text string) {
	if warning {
		text = "! " + text
	}
	*l = append(*l, text)
}

func expect(t *testing.T, got lines, want ...string) {
	t.Helper()
	for i := range want {
		want[i] = strings.Replace(want[i], "Run", "Run 0123456789ab", 1)
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func newWitness(restarted bool) (*witness, *lines) {
	log := &lines{}
	return &witness{run: "0123456789ab", log: log, restarted: restarted, lease: lease.New(2 * time.Minute)}, log
}

func status(handle, label, program string, safe, ended bool, code int64) process.Status {
	return process.Status{Handle: handle, Label: label, Program: program, SafeToKill: safe, Snapshot: process.Snapshot{Ended: ended, ExitCode: code, Seconds: 30.4}}
}

func TestTheEndOfTheLease(t *testing.T) {
	w, log := newWitness(false)
	done, flash, helper := status("1", "", "setup.exe", false, true, 3), status("2", "flash of the BIOS", "flash.exe", false, false, 0), status("3", "", "tail", true, false, 0)
	all := []process.Status{done, flash, helper}
	w.leaseEnded(all)
	w.look(all)
	flash.Ended = true
	now := []process.Status{done, flash, helper}
	w.look(now)
	w.look(now)
	helper.Ended = true
	w.killed(now, []process.Status{done, flash, helper})
	w.removed("the firewall rule sojourn-0123456789ab", true, nil)
	w.removed("the service sojourn-0123456789ab", true, nil)
	w.removed("the folder F", true, errors.New("in use"))
	w.last()
	expect(t, *log,
		"! Run: no sign of life from the controller for 120 s. The agent waits for 1 process and then removes itself.",
		"Run: setup.exe had ended with exit code 3 after 30 s, and nobody fetched its result.",
		"Run: flash of the BIOS has been running for 30 s and is waited for.",
		"Run: flash of the BIOS has ended with exit code 0 after 30 s.",
		"Run: tail was killed: it was marked as safe to kill.",
		"! Run: the agent could not remove: the folder F (in use).",
		"Run: the agent has ended and removed the firewall rule sojourn-0123456789ab, the service sojourn-0123456789ab.")
}

func TestWhatGoesOnWithoutTheAgent(t *testing.T) {
	w, log := newWitness(false)
	all := []process.Status{status("1", "", "sh", false, false, 0)}
	all[0].MayOutlive = true
	w.leaseEnded(all)
	w.killed(all, all)
	w.removed("the folder F", true, nil)
	w.last()
	expect(t, *log,
		"! Run: no sign of life from the controller for 120 s. The agent removes itself.",
		"Run: sh has been running for 30 s and goes on without the agent.",
		"Run: the agent has ended and removed the folder F.")
}

func TestAShutdownSaysNothing(t *testing.T) {
	w, log := newWitness(true)
	running := []process.Status{status("1", "", "a", false, false, 0), status("2", "", "b", true, false, 0)}
	w.look(running)
	w.killed(running, running)
	w.removed("the folder F", true, nil)
	w.last()
	expect(t, *log)
}

func TestNobodyCameAfterABoot(t *testing.T) {
	w, log := newWitness(true)
	w.leaseEnded(nil)
	expect(t, *log, "! Run: the target was restarted, and no controller came back within 120 s. The agent removes itself.")
	w, log = newWitness(true)
	w.lease.Renew(0)
	w.leaseEnded(nil)
	expect(t, *log, "! Run: no sign of life from the controller for 120 s. The agent removes itself.")
}

func TestTheControllerComesBack(t *testing.T) {
	w, log := newWitness(false)
	all := []process.Status{status("1", "", "a", false, false, 0)}
	w.leaseEnded(all)
	w.revived()
	all[0].Ended = true
	w.look(all)
	w.killed(all, all)
	w.last()
	expect(t, *log,
		"! Run: no sign of life from the controller for 120 s. The agent waits for 1 process and then removes itself.",
		"Run: a has been running for 30 s and is waited for.",
		"Run: the controller is back: the agent goes on.")
}

func TestStoppedByTheServiceManager(t *testing.T) {
	w, log := newWitness(false)
	w.stopped(nil)
	w.stopped([]process.Status{status("1", "", "a", false, true, 0)})
	expect(t, *log)
	all := []process.Status{status("1", "", "a", false, false, 0), status("2", "", "b", true, false, 0)}
	w.stopped(all)
	after := slices.Clone(all)
	w.killed(all, after)
	expect(t, *log,
		"! Run: the service manager stopped the agent while it ran 2 processes.",
		"Run: a has been running for 30 s and is waited for.",
		"! Run: a goes on without the agent, as the service manager waits no longer.",
		"! Run: b, which was marked as safe to kill, could not be killed.")
}

func TestAfterAShutdownOnlyWhatIsLeftIsTold(t *testing.T) {
	w, log := newWitness(false)
	w.removed("the service sojourn-0123456789ab", true, nil)
	w.last()
	expect(t, *log)
	w.removed("the firewall rule sojourn-0123456789ab", true, errors.New("nft ended with 1"))
	w.removed("the folder F", true, errors.New("it tells of that"))
	w.last()
	expect(t, *log, "! Run: the agent could not remove: the firewall rule sojourn-0123456789ab (nft ended with 1); the folder F (it tells of that).")
}

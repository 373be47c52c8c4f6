// This file writes down how an agent ended that nobody told to: who finds the target without it, or an installation without a
// result, finds the reason in the target's own log.

package agent

import (
	"fmt"
	"strings"

	"sojourn.example/agent/internal/lease"
	"sojourn.example/agent/internal/process"
	"sojourn.example/agent/internal/systemlog"
)

// witness tells what happened to the processes, and what was removed. Of a process it tells its label or its program's name,
// never arguments or environment, which may hold secrets. It is silent until there is something to tell: a Shutdown is not, unless
// something is left.
type witness struct {
	run       string
	log       systemlog.Log
	restarted bool
	lease     *lease.Lease

	speaks  bool
	awaited map[string]bool // handles of processes whose end is to be told
	gone    []string
	left    []string
}

func (w *witness) say(warning bool, format string, arguments ...any) {
	w.log.Say(warning, "Run "+w.run+": "+fmt.Sprintf(format, arguments...))
}

// leaseEnded tells why the agent ends.
func (w *witness) leaseEnded(all []process.Status) {
	w.speaks = true
	seconds := w.lease.Length().Seconds()
	then := "The agent removes itself."
	if n := unfinished(all); n > 0 {
		then = fmt.Sprintf("The agent waits for %s and then removes itself.", counted(n))
	}
	if w.restarted && !w.lease.Renewed() {
		w.say(true, "the target was restarted, and no controller came back within %.0f s. %s", seconds, then)
	} else {
		w.say(true, "no sign of life from the controller for %.0f s. %s", seconds, then)
	}
	w.list(all)
}

// stopped tells of a stop by the service manager, where it meets a running process.
func (w *witness) stopped(all []process.Status) {
	running := 0
	for _, s := range all {
		if !s.Ended {
			running++
		}
	}
	if running == 0 {
		return
	}
	w.speaks = true
	w.say(true, "the service manager stopped the agent while it ran %s.", counted(running))
	w.list(all)
}

func counted(n int) string {
	if n == 1 {
		return "1 process"
	}
	return fmt.Sprintf("%d processes", n)
}

// list tells of each process that is waited for, or whose result nobody has.
func (w *witness) list(all []process.Status) {
	w.awaited = make(map[string]bool)
	for _, s := range all {
		switch {
		case s.Ended:
			w.say(false, "%s had %s, and nobody fetched its result.", s.Name(), ending(s))
		case s.Unfinished():
			w.awaited[s.Handle] = true
			w.say(false, "%s has been running for %.0f s and is waited for.", s.Name(), s.Seconds)
		case s.MayOutlive:
			w.say(false, "%s has been running for %.0f s and goes on without the agent.", s.Name(), s.Seconds)
		}
	}
}

func ending(s process.Status) string {
	how := fmt.Sprintf("ended with exit code %d after %.0f s", s.ExitCode, s.Seconds)
	if s.TimedOut {
		how += ", killed at its time limit"
	}
	return how
}

// look tells of what has ended since.
func (w *witness) look(all []process.Status) {
	if !w.speaks {
		return
	}
	for _, s := range all {
		if s.Ended && w.awaited[s.Handle] {
			delete(w.awaited, s.Handle)
			w.say(false, "%s has %s.", s.Name(), ending(s))
		}
	}
}

// revived: somebody came back for the result.
func (w *witness) revived() {
	w.say(false, "the controller is back: the agent goes on.")
	w.speaks = false
}

// killed tells of what was running when the agent ended.
func (w *witness) killed(before, after []process.Status) {
	if !w.speaks {
		return
	}
	w.look(after)
	ended := make(map[string]bool)
	for _, s := range after {
		ended[s.Handle] = s.Ended
	}
	for _, s := range before {
		switch {
		case s.Ended:
		case s.SafeToKill && ended[s.Handle]:
			w.say(false, "%s was killed: it was marked as safe to kill.", s.Name())
		case s.SafeToKill:
			w.say(true, "%s, which was marked as safe to kill, could not be killed.", s.Name())
		case s.MayOutlive: // it was told
		case !ended[s.Handle]:
			w.say(true, "%s goes on without the agent, as the service manager waits no longer.", s.Name())
		}
	}
}

// removed keeps for the last line what is gone, or why not.
func (w *witness) removed(what string, there bool, err error) {
	if err != nil {
		w.left = append(w.left, what+" ("+err.Error()+")")
	} else if there {
		w.gone = append(w.gone, what)
	}
}

// last: what is left is told however the agent came to its end.
func (w *witness) last() {
	if len(w.left) > 0 {
		w.say(true, "the agent could not remove: %s.", strings.Join(w.left, "; "))
	}
	if w.speaks && len(w.gone) > 0 {
		w.say(false, "the agent has ended and removed %s.", strings.Join(w.gone, ", "))
	}
}

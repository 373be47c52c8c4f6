// Package leftovers finds and removes what earlier runs of this project left on the target: services, processes, folders, files
// and firewall rules. It goes by the project's own names alone, and leaves living runs and other people's things alone.
package leftovers

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"sojourn.example/agent/internal/config"
	"sojourn.example/agent/internal/firewall"
	"sojourn.example/agent/internal/lease"
)

// Kinds and states, as in deploy.wsdl.
const (
	Service      = "service"
	Process      = "process"
	Folder       = "folder"
	File         = "file"
	FirewallRule = "firewall-rule"

	Removed = "removed"
	Live    = "live"
	Failed  = "failed"
)

// settlingTime is how long a folder with an executable but no agent may be one that a way in is about to start, and how long an
// agent may take from its start to its first lease.
const settlingTime = 2 * time.Minute

// grace is how long after its lease's end an agent with nothing to wait for may still be there: closing rules takes seconds on a
// slow target. One that is there after it hangs.
const grace = time.Minute

// Request says what to look for.
type Request struct {
	Run      string // only this run; "": all
	Force    bool   // whatever its state; else only what is dead
	DryRun   bool
	Own      string // the run that asks: never touched
	Firewall firewall.Firewall
}

// Leftover is one thing that was found, and what became of it.
type Leftover struct {
	Kind   string
	Name   string
	Run    string
	State  string
	Detail string
}

// thing is something of a run on this target.
type thing struct {
	kind   string
	name   string
	remove func() error

	agent bool          // an agent, or its service, that runs
	age   time.Duration // how long it has run
	guard bool          // an agent's guard, which outlives it only to clean up after it

	settling string // why an agent may be about to come; "": it says nothing
	folder   string // the agent's folder, where its lease may be; "": not known
}

// runOf gives the run of a name 'sojourn-<run>', or "".
func runOf(name string) string {
	run, ok := strings.CutPrefix(name, config.Prefix)
	if !ok || !config.IsRun(run) {
		return ""
	}
	return run
}

// Remove finds what is there and removes what is dead, or what the request names.
func Remove(r Request) ([]Leftover, error) {
	runs := make(map[string][]thing)
	add := func(run string, t thing) {
		if run != "" && run != r.Own && (r.Run == "" || run == r.Run) {
			runs[run] = append(runs[run], t)
		}
	}
	if err := find(add); err != nil { // processes and services first: they hold what comes after
		return nil, err
	}
	rules, err := r.Firewall.List()
	if err != nil {
		return nil, err
	}
	seen := make(map[string]bool)
	for _, rule := range rules {
		if run := rule.Run(); run != "" && !seen[rule.Name] {
			seen[rule.Name] = true
			add(run, thing{kind: FirewallRule, name: rule.Name, remove: func() error {
				_, err := r.Firewall.Close(func(other firewall.Rule) bool { return other.Name == rule.Name })
				return err
			}})
		}
	}
	var all []Leftover
	for _, run := range slices.Sorted(maps.Keys(runs)) {
		all = append(all, removeRun(r, run, runs[run])...)
	}
	return all, nil
}

// judge tells whether a run is alive, and why that is thought.
func judge(things []thing) (alive bool, why string) {
	var agent, guard *thing
	var record lease.Record
	recorded, settling := false, ""
	for i := range things {
		t := &things[i]
		if t.agent && (agent == nil || t.age < agent.age) {
			agent = t
		}
		if t.guard {
			guard = t
		}
		if settling == "" {
			settling = t.settling
		}
		if t.folder != "" && !recorded {
			if found, err := lease.LoadRecord(t.folder); err == nil {
				record, recorded = found, true
			}
		}
	}
	left, ofThisBoot := record.Left()
	switch {
	case settling != "":
		return true, settling
	case agent != nil && !recorded:
		return true, "its agent runs: an agent whose lease is over removes itself"
	case agent != nil && !ofThisBoot && agent.age < settlingTime:
		return true, "its agent has just started"
	case agent != nil && !ofThisBoot:
		return false, "its lease is of an earlier boot of the target, and its agent hangs"
	case agent != nil && left > 0:
		return true, fmt.Sprintf("its lease has %.0f s left", left.Seconds())
	case agent != nil && record.Unfinished > 0:
		return true, "its lease is over; it finishes an installation and then removes itself"
	case agent != nil && -left < grace:
		return true, "its lease is over; it is about to remove itself"
	case agent != nil:
		return false, fmt.Sprintf("its lease has been over for %.0f s, and its agent hangs", -left.Seconds())
	case guard != nil:
		return true, "its agent has ended without removing itself; its guard waits for what still runs, and then removes it"
	case recorded && !ofThisBoot:
		return false, "its agent ended with an earlier boot of the target"
	}
	return false, "no agent of it runs any more"
}

func removeRun(r Request, run string, things []thing) (all []Leftover) {
	alive, why := judge(things)
	if alive && r.Force {
		alive, why = false, "removed by force; "+why
	}
	for _, t := range things {
		found := Leftover{Kind: t.kind, Name: t.name, Run: run, State: Removed, Detail: why}
		switch {
		case alive:
			found.State = Live
		case !r.DryRun:
			if err := t.remove(); err != nil {
				found.State, found.Detail = Failed, err.Error()+" ("+why+")"
			}
		}
		all = append(all, found)
	}
	return all
}

// exists tells whether a folder has something of a name in it. The way in writes the session first of all: a folder without it is not
// being set up, but was removed as far as that could be done.
func exists(folder, name string) bool {
	_, err := os.Lstat(filepath.Join(folder, name))
	return err == nil
}

// isNew tells whether a folder was made a moment ago. One of the future is not: the clock was set back since.
func isNew(info os.FileInfo) bool {
	age := time.Since(info.ModTime())
	return age > -time.Minute && age < settlingTime
}

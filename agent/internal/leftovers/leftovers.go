// Package leftovers finds and removes what earlier runs of this project left on the target: services, processes, folders and
// firewall rules. It goes by the project's own names alone, and leaves living runs and other people's things alone.
package leftovers

import (
	"maps"
	"slices"
	"strings"
	"time"

	"sojourn.example/agent/internal/config"
	"sojourn.example/agent/internal/firewall"
)

// Kinds and states, as in deploy.wsdl.
const (
	Service      = "service"
	Process      = "process"
	Folder       = "folder"
	FirewallRule = "firewall-rule"

	Removed = "removed"
	Live    = "live"
	Failed  = "failed"
)

// settling is how long a folder with an executable but no agent may be one that a way in is about to start.
const settling = 2 * time.Minute

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
	alive  string // why its run counts as living; "": it says nothing
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
	if err := find(add); err != nil { // services and processes first: they hold what comes after
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

func removeRun(r Request, run string, things []thing) (all []Leftover) {
	alive := ""
	if !r.Force {
		for _, t := range things {
			if t.alive != "" {
				alive = t.alive
				break
			}
		}
	}
	for _, t := range things {
		found := Leftover{Kind: t.kind, Name: t.name, Run: run, State: Removed}
		switch {
		case alive != "":
			found.State, found.Detail = Live, alive
		case !r.DryRun:
			if err := t.remove(); err != nil {
				found.State, found.Detail = Failed, err.Error()
			}
		}
		all = append(all, found)
	}
	return all
}

// This file looks after rules that have to be in force while their agent works: a reload of the target's firewall drops them, and
// with the agent's own rule goes its client's way in.

package firewall

import (
	"log"
	"slices"
	"sync"
	"time"
)

// checkPause is between two looks at the rules. A client without its rule loses little more than this: it is far below a lease, and
// below what a client waits for a connection before it thinks the target gone. Looking is cheap where nothing has changed.
const checkPause = 5 * time.Second

// checkShare bounds the looks' share of the time where a tool is slow (firewall-cmd takes a second): the pause is so many times
// as long as the look took.
const checkShare = 20

// Keeper is a firewall that looks after the rules of runs that are opened through it. Kept ones last by themselves, or not, as the
// target's administrators have it.
type Keeper struct {
	walls Firewall

	mu      sync.Mutex // one at a time: what a look finds must not be closed meanwhile
	wanted  []Rule
	stopped bool
	failure string // what was logged already

	stop chan struct{}
	over chan struct{}
}

// Keep makes a keeper. It looks after nothing until it is told to Watch.
func Keep(walls Firewall) *Keeper { return &Keeper{walls: walls} }

// Kind is the firewall's.
func (k *Keeper) Kind() string { return k.walls.Kind() }

// List is the firewall's.
func (k *Keeper) List() ([]Rule, error) { return k.walls.List() }

// Open opens, and has a run's rule looked after. Where nothing filters today, something may tomorrow.
func (k *Keeper) Open(rule Rule) (rules []Rule, changed bool, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	rules, changed, err = k.walls.Open(rule)
	if err != nil {
		return rules, changed, err
	}
	if rule.Run() != "" && !slices.Contains(k.wanted, rule) {
		k.wanted = append(k.wanted, rule)
	}
	return rules, changed, nil
}

// Close closes, and what is closed is not looked after any more.
func (k *Keeper) Close(match func(Rule) bool) (changed bool, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.wanted = slices.DeleteFunc(k.wanted, match)
	return k.walls.Close(match)
}

// Watch begins to look after the rules.
func (k *Keeper) Watch() {
	k.stop, k.over = make(chan struct{}), make(chan struct{})
	go func() {
		defer close(k.over)
		pause := time.NewTimer(checkPause)
		defer pause.Stop()
		for {
			select {
			case <-pause.C:
			case <-k.stop:
				return
			}
			began := time.Now()
			k.Check()
			pause.Reset(max(checkPause, checkShare*time.Since(began)))
		}
	}()
}

// Stop ends it for good: once it returns, nothing is opened any more that was not asked for.
func (k *Keeper) Stop() {
	k.mu.Lock()
	k.stopped = true
	k.mu.Unlock()
	if k.stop != nil {
		close(k.stop)
		<-k.over
		k.stop = nil
	}
}

// Check opens what is not open any more.
func (k *Keeper) Check() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if watched, ok := k.walls.(interface{ unchanged() bool }); ok && watched.unchanged() {
		return
	}
	k.check()
}

func (k *Keeper) check() {
	if k.stopped {
		return
	}
	failure := ""
	for _, rule := range k.wanted {
		if _, changed, err := k.walls.Open(rule); err != nil {
			failure = err.Error()
		} else if changed {
			log.Printf("the firewall rule %s was not in force any more; it is again", rule.Name)
		}
	}
	if failure != "" && failure != k.failure {
		log.Printf("looking after the firewall rules: %s", failure)
	}
	k.failure = failure
}

package firewall

import (
	"bytes"
	"errors"
	"log"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// wall is a firewall that somebody else may reload.
type wall struct {
	mu    sync.Mutex
	rules []Rule
	fails error
}

// reload drops everything, and gives what there was.
func (w *wall) reload() (before []Rule) {
	w.mu.Lock()
	defer w.mu.Unlock()
	before, w.rules = w.rules, nil
	return before
}

func (*wall) Kind() string            { return KindNftables }
func (w *wall) List() ([]Rule, error) { return w.rules, nil }
func (w *wall) Open(r Rule) (rules []Rule, changed bool, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.fails != nil {
		return nil, false, w.fails
	}
	if slices.Contains(w.rules, r) {
		return []Rule{r}, false, nil
	}
	w.rules = append(w.rules, r)
	return []Rule{r}, true, nil
}
func (w *wall) Close(match func(Rule) bool) (changed bool, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	before := len(w.rules)
	w.rules = slices.DeleteFunc(w.rules, match)
	return len(w.rules) < before, nil
}

func TestKeeperOpensAgainWhatAReloadDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		own, further, kept := Rule{Name: "sojourn-0123456789ab"}, Rule{Name: "sojourn-0123456789ab-tcp-80", Port: 80}, Rule{Name: "sojourn-kept-tcp-81", Port: 81}
		w := &wall{}
		k := Keep(w)
		for _, r := range []Rule{own, further, kept} {
			if _, changed, err := k.Open(r); !changed || err != nil {
				t.Error(r, changed, err)
			}
		}
		k.Watch()
		w.reload()
		time.Sleep(checkPause + time.Second)
		// What is kept is not the keeper's.
		if got := w.reload(); !slices.Equal(got, []Rule{own, further}) {
			t.Error(got)
		}
		time.Sleep(checkPause + time.Second)
		if changed, err := k.Close(func(r Rule) bool { return r == further }); !changed || err != nil {
			t.Error(changed, err)
		}
		w.reload()
		time.Sleep(checkPause + time.Second)
		if got := w.reload(); !slices.Equal(got, []Rule{own}) {
			t.Error(got)
		}
		time.Sleep(checkPause + time.Second)
		k.Stop()
		if changed, err := k.Close(func(r Rule) bool { return r.Run() == "0123456789ab" }); !changed || err != nil {
			t.Error(changed, err)
		}
		k.Check()
		time.Sleep(time.Minute)
		if got := w.reload(); len(got) != 0 {
			t.Error("opened after the end", got)
		}
	})
}

func TestKeeperLogsAFailureOnce(t *testing.T) {
	var out bytes.Buffer
	log.SetOutput(&out)
	defer log.SetOutput(os.Stderr)
	w := &wall{}
	k := Keep(w)
	_, _, _ = k.Open(Rule{Name: "sojourn-0123456789ab"})
	w.rules, w.fails = nil, errors.New("refused by policy")
	k.Check()
	k.Check()
	if strings.Count(out.String(), "refused by policy") != 1 {
		t.Errorf("%q", out.String())
	}
	w.fails = nil
	k.Check()
	if len(w.rules) != 1 {
		t.Error("not opened once that was possible")
	}
}

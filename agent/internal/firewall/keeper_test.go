package firewall

import (
	"bytes"
	"errors"
	"log"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// wall is a firewall that somebody else may reload.
type wall struct {
	rules []Rule
	fails error
	opens int
}

func (*wall) Kind() string            { return KindNftables }
func (w *wall) List() ([]Rule, error) { return w.rules, nil }
func (w *wall) Open(r Rule) (rules []Rule, changed bool, err error) {
	w.opens++
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
		w.rules = nil
		time.Sleep(checkPause + time.Second)
		if want := []Rule{own, further}; !slices.Equal(w.rules, want) {
			t.Error(w.rules)
		}
		// What is closed stays closed.
		if changed, err := k.Close(func(r Rule) bool { return r == further }); !changed || err != nil {
			t.Error(changed, err)
		}
		w.rules = nil
		time.Sleep(checkPause + time.Second)
		if !slices.Equal(w.rules, []Rule{own}) {
			t.Error(w.rules)
		}
		k.Stop()
		if changed, err := k.Close(func(r Rule) bool { return r.Run() == "0123456789ab" }); !changed || err != nil {
			t.Error(changed, err)
		}
		k.Check()
		time.Sleep(time.Minute)
		if len(w.rules) != 0 {
			t.Error("opened after the end", w.rules)
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

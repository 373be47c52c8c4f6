package leftovers

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"sojourn.example/agent/internal/config"
	"sojourn.example/agent/internal/firewall"
)

// wall is a firewall with some rules, which may refuse to give one back.
type wall struct {
	rules   []firewall.Rule
	refuses bool
}

func (*wall) Kind() string                                      { return firewall.KindNftables }
func (*wall) Open(firewall.Rule) ([]firewall.Rule, bool, error) { return nil, false, nil }
func (w *wall) List() ([]firewall.Rule, error)                  { return w.rules, nil }
func (w *wall) Close(match func(firewall.Rule) bool) (c bool, e error) {
	if w.refuses {
		return false, errors.New("refused")
	}
	w.rules = slices.DeleteFunc(w.rules, match)
	return true, nil
}

// leave makes what a killed agent leaves, under a run id of the test's own: whatever else is on this machine is not touched.
func leave(t *testing.T, withExecutable bool, age time.Duration) (run, folder string) {
	t.Helper()
	var id [6]byte
	rand.Read(id[:])
	run = hex.EncodeToString(id[:])
	folder = filepath.Join("/var/tmp", config.Prefix+run)
	if err := os.Mkdir(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(folder) })
	if withExecutable {
		for _, name := range []string{"agent", config.SessionName} {
			if err := os.WriteFile(filepath.Join(folder, name), nil, 0o700); err != nil {
				t.Fatal(err)
			}
		}
	}
	then := time.Now().Add(-age)
	if err := os.Chtimes(folder, then, then); err != nil {
		t.Fatal(err)
	}
	return run, folder
}

func of(all []Leftover, run string) (kinds []string, state string) {
	for _, l := range all {
		if l.Run == run {
			kinds = append(kinds, l.Kind)
			state = l.State
		}
	}
	return kinds, state
}

func TestWhatIsDeadAndWhatIsNot(t *testing.T) {
	dead, _ := leave(t, false, 0)
	placed, _ := leave(t, true, 0)
	stale, _ := leave(t, true, time.Hour)
	own, ownFolder := leave(t, false, 0)
	walls := &wall{rules: []firewall.Rule{
		{Name: config.Prefix + dead}, {Name: config.Prefix + dead, Family: firewall.IPv4}, {Name: config.Prefix + own},
		{Name: "sojourn-kept-tcp-80"},
	}}
	all, err := Remove(Request{DryRun: true, Own: own, Firewall: walls})
	if err != nil {
		t.Fatal(err)
	}
	if kinds, state := of(all, dead); !slices.Equal(kinds, []string{Folder, FirewallRule}) || state != Removed {
		t.Error(kinds, state)
	}
	if kinds, state := of(all, placed); !slices.Equal(kinds, []string{Folder}) || state != Live {
		t.Error(kinds, state)
	}
	if kinds, state := of(all, stale); !slices.Equal(kinds, []string{Folder}) || state != Removed {
		t.Error(kinds, state)
	}
	if kinds, _ := of(all, own); kinds != nil {
		t.Error(kinds)
	}
	if _, err := os.Stat(ownFolder); err != nil || len(walls.rules) != 4 {
		t.Error("a dry run removed something")
	}
}

func TestANamedRunIsRemovedWhateverItsState(t *testing.T) {
	run, folder := leave(t, true, 0)
	other, otherFolder := leave(t, false, 0)
	walls := &wall{rules: []firewall.Rule{{Name: config.Prefix + run + "-tcp-80"}, {Name: config.Prefix + other}}}
	if all, err := Remove(Request{Run: run, Own: "000000000000", Firewall: walls}); err != nil || len(all) != 2 || all[0].State != Live || all[1].State != Live {
		t.Error("without force it is not removed while it lives", all, err)
	}
	for range 2 {
		all, err := Remove(Request{Run: run, Force: true, Own: "000000000000", Firewall: walls})
		if err != nil {
			t.Fatal(err)
		}
		if kinds, _ := of(all, other); kinds != nil {
			t.Error(kinds)
		}
		if _, state := of(all, run); state != Removed && state != "" {
			t.Error(state)
		}
	}
	if _, err := os.Stat(folder); !os.IsNotExist(err) || len(walls.rules) != 1 {
		t.Error("something was left", walls.rules)
	}
	if _, err := os.Stat(otherFolder); err != nil {
		t.Error("another run's folder was removed")
	}
}

func TestAFailureIsToldAndTheRestRemoved(t *testing.T) {
	run, folder := leave(t, false, 0)
	all, err := Remove(Request{Run: run, Firewall: &wall{rules: []firewall.Rule{{Name: config.Prefix + run}}, refuses: true}})
	if err != nil || len(all) != 2 || all[0].State != Removed || all[1].State != Failed || all[1].Detail != "refused (no agent of it runs any more)" {
		t.Error(all, err)
	}
	if _, err := os.Stat(folder); !os.IsNotExist(err) {
		t.Error("the folder was left")
	}
}

func TestOnlyOurNamesCount(t *testing.T) {
	for name, run := range map[string]string{
		"sojourn-0123456789ab": "0123456789ab", "sojourn-0123456789abc": "", "sojourn-kept-tcp-80": "", "sojourn-": "", "x": "", "sojourn-0123456789AB": "",
	} {
		if got := runOf(name); got != run {
			t.Errorf("%s is of run %q", name, got)
		}
	}
}

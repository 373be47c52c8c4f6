package firewall

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"sojourn.example/agent/internal/catalogue"
)

// locked is a firewall whose tool fails until somebody lets go of it.
type locked struct {
	wall
	until time.Time
	tries int
}

var errLocked = catalogue.New("SD-603", "detail", "ufw ended with exit status 1: it is locked")

func (l *locked) Close(match func(Rule) bool) (bool, error) {
	l.tries++
	if time.Now().Before(l.until) {
		return true, errLocked
	}
	return l.wall.Close(match)
}

func all(Rule) bool { return true }

func TestATransientFailureIsOvercome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		l := &locked{wall: wall{rules: []Rule{{Name: "a"}}}, until: began.Add(10 * time.Second)}
		if changed, err := Insist(l, all, nil); !changed || err != nil || len(l.rules) != 0 {
			t.Error(changed, err, l.rules)
		}
		if took := time.Since(began); took < 10*time.Second || took > 12*time.Second || l.tries > 9 {
			t.Error(took, l.tries)
		}
	})
}

func TestPatienceHasAnEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		l := &locked{until: began.Add(time.Hour)}
		if _, err := Insist(l, all, nil); !errors.Is(err, errLocked) {
			t.Error(err)
		}
		if took := time.Since(began); took > insistPatience || took < insistPatience-longestPause {
			t.Error(took)
		}
		enough := make(chan struct{})
		time.AfterFunc(time.Second, func() { close(enough) })
		began = time.Now()
		if _, err := Insist(l, all, enough); !errors.Is(err, errLocked) || time.Since(began) != time.Second {
			t.Error(err, time.Since(began))
		}
		l.tries = 0
		if _, _ = Insist(l, all, enough); l.tries != 1 {
			t.Error("it is tried once at least, and no longer than the caller has time:", l.tries)
		}
	})
}

func TestWhatIsLeftIsToldInTheToolsWords(t *testing.T) {
	for want, err := range map[string]error{
		"ufw ended with exit status 1: it is locked":                        errLocked,
		"The target's nftables filters ipv6, but the tool 'nft' is missing": catalogue.New("SD-602", "firewall", "nftables", "family", "ipv6", "tool", "nft"),
		"unexpected": errors.New("unexpected"),
	} {
		left := Left("sojourn-0123456789ab", err)
		if left.Code != "SD-801" || left.Fields["what"] != "The firewall rule sojourn-0123456789ab" || left.Fields["detail"] != want {
			t.Error(left.Fields)
		}
	}
}

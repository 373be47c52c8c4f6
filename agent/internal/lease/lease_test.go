package lease

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(time.Minute)
		begin := time.Now()
		<-l.Over()
		if passed := time.Since(begin); passed != time.Minute || l.Alive() || l.Remaining() != 0 {
			t.Error(passed, l.Alive(), l.Remaining())
		}
	})
}

func TestRenewal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(time.Minute)
		begin := time.Now()
		time.Sleep(50 * time.Second)
		if left := l.Renew(0); left != time.Minute {
			t.Error(left)
		}
		time.Sleep(50 * time.Second)
		l.Renew(2 * time.Minute)
		if l.Length() != 2*time.Minute {
			t.Error(l.Length())
		}
		<-l.Over()
		if passed := time.Since(begin); passed != 220*time.Second {
			t.Error(passed)
		}
		// An agent that still waits for an installation can be taken up again.
		l.Renew(0)
		if !l.Alive() {
			t.Error("not revived")
		}
		<-l.Over()
		if l.Alive() {
			t.Error("alive without end")
		}
	})
}

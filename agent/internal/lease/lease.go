// Package lease is the agent's dead-man switch: it ends unless it is renewed. Time is the monotonic clock's alone.
package lease

import (
	"sync"
	"time"
)

// Lease counts down from its length; renewals begin it anew.
type Lease struct {
	mu     sync.Mutex
	length time.Duration
	end    time.Time // carries the monotonic reading, so that a jump of the wall clock means nothing
	timer  *time.Timer
	over   chan struct{}

	renewed  bool
	renewals chan struct{}
}

// New begins a lease.
func New(length time.Duration) *Lease {
	l := &Lease{length: length, end: time.Now().Add(length), over: make(chan struct{}, 1), renewals: make(chan struct{}, 1)}
	l.timer = time.AfterFunc(length, l.check)
	return l
}

func (l *Lease) check() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if left := time.Until(l.end); left > 0 { // renewed while this call was on its way
		l.timer.Reset(left)
		return
	}
	select {
	case l.over <- struct{}{}:
	default:
	}
}

// Over receives once each time the lease has ended. Ask Alive then: a renewal may have come in between.
func (l *Lease) Over() <-chan struct{} { return l.over }

// Alive tells whether the lease has time left.
func (l *Lease) Alive() bool { return l.Remaining() > 0 }

// Renew begins the lease anew, with another length where that is not 0. It also revives a lease that ended
// while the agent still waited for a process.
func (l *Lease) Renew(length time.Duration) (remaining time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if length > 0 {
		l.length = length
	}
	l.end = time.Now().Add(l.length)
	l.timer.Reset(l.length)
	l.renewed = true
	select {
	case l.renewals <- struct{}{}:
	default:
	}
	return l.length
}

// Renewals receives after renewals: once or more often, but not for each of many.
func (l *Lease) Renewals() <-chan struct{} { return l.renewals }

// Renewed tells whether there was a renewal ever.
func (l *Lease) Renewed() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.renewed
}

// Length is how long a renewal lasts.
func (l *Lease) Length() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.length
}

// Remaining is the time left.
func (l *Lease) Remaining() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return max(0, time.Until(l.end))
}

// Left is the time left; less than zero: since when the lease is over.
func (l *Lease) Left() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return time.Until(l.end)
}

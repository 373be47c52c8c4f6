// This file closes rules although the tool may fail: it may be locked, or busy, and then what was opened would stay open for ever.

package firewall

import (
	"errors"
	"time"

	"sojourn.example/agent/internal/catalogue"
)

// How long closing is tried, and the pauses between the tries. The way in waits longer for an agent's end.
const (
	insistPatience = 20 * time.Second
	firstPause     = 200 * time.Millisecond
	longestPause   = 2 * time.Second
)

// Insist closes what matches, and tries again while that fails, until patience or the caller (enough) has had enough.
func Insist(walls Firewall, match func(Rule) bool, enough <-chan struct{}) (changed bool, err error) {
	deadline := time.Now().Add(insistPatience)
	for pause := firstPause; ; pause = min(2*pause, longestPause) {
		closed, err := walls.Close(match)
		changed = changed || closed
		if err == nil || time.Now().Add(pause).After(deadline) {
			return changed, err
		}
		select {
		case <-time.After(pause):
		case <-enough:
			return changed, err
		}
	}
}

// Left says that a run's rule could not be closed, in the tool's own words.
func Left(name string, err error) *catalogue.Error {
	detail := err.Error()
	if known, ok := errors.AsType[*catalogue.Error](err); ok {
		detail = known.Sentence()
		if words := known.Fields["detail"]; words != "" {
			detail = words
		}
	}
	return catalogue.New("SD-801", "what", "The firewall rule "+name, "detail", detail)
}

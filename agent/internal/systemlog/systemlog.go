// Package systemlog writes lines into the target's own log, where its administrators look for what happened in their absence:
// syslog, or the Application event log.
package systemlog

import "strings"

// Source is the name that the lines carry.
const Source = "sojourn-agent"

// Log takes lines for the target's administrators.
type Log interface {
	// Say writes a line; a warning is one that somebody should look into.
	Say(warning bool, text string)
}

// lineBytes bounds a line: a datagram of syslog, and a string of the event log, take no more than some thousands.
const lineBytes = 2000

// line makes text one line: what others named must not look like a line of its own.
func line(text string) string {
	text = strings.Map(func(c rune) rune {
		if c < ' ' || c == 0x7f || c == '\u2028' || c == '\u2029' {
			return ' '
		}
		return c
	}, strings.ToValidUTF8(text, "?"))
	if len(text) > lineBytes {
		text = strings.ToValidUTF8(text[:lineBytes], "") + "..."
	}
	return text
}

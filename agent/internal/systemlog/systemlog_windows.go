// This file is the Application event log.

package systemlog

import (
	"log"

	"golang.org/x/sys/windows/svc/eventlog"
)

// eventID is of no meaning: there is no file of messages to look it up in.
const eventID = 1

// New gives the target's log. The source is not registered, as that would leave a registry key: the event viewer says that it
// has no description for it, and shows the text all the same.
func New() Log { return events{} }

type events struct{}

func (events) Say(warning bool, text string) {
	text = line(text)
	to, err := eventlog.Open(Source)
	if err == nil {
		defer to.Close()
		if warning {
			err = to.Warning(eventID, text)
		} else {
			err = to.Info(eventID, text)
		}
	}
	if err != nil {
		log.Printf("%s (not in the event log: %v)", text, err)
	}
}

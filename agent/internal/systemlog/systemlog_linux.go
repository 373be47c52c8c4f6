// This file is syslog, as a datagram to /dev/log. (The standard library's package has no deadline: a log daemon that hangs would
// hold the agent's end up.)

package systemlog

import (
	"fmt"
	"log"
	"net"
	"os"
	"time"
)

// socket is where the system's log daemon listens; tests have their own.
var socket = "/dev/log"

const patience = 2 * time.Second

// From <syslog.h>.
const (
	facilityDaemon  = 3 << 3
	severityWarning = 4
	severityNotice  = 5
)

// New gives the target's log. Where there is none, lines go to standard error.
func New() Log { return syslog{} }

type syslog struct{}

func (syslog) Say(warning bool, text string) {
	text = line(text)
	if err := send(warning, text); err != nil {
		log.Print(text)
	}
}

func send(warning bool, text string) error {
	connection, err := net.Dial("unixgram", socket)
	if err != nil {
		return err
	}
	defer connection.Close()
	_ = connection.SetWriteDeadline(time.Now().Add(patience))
	priority := facilityDaemon | severityNotice
	if warning {
		priority = facilityDaemon | severityWarning
	}
	_, err = fmt.Fprintf(connection, "<%d>%s %s[%d]: %s", priority, time.Now().Format(time.Stamp), Source, os.Getpid(), text)
	return err
}

// Package host asks the Linux below Wine for what no Windows program can do here: see session.py.
package host

import (
	"bufio"
	"encoding/json"
	"net"
	"strings"
	"time"
)

const address = "127.0.0.1:47001"

// Ask sends a request and gives back the answer, "ok" when it was done.
func Ask(request any) (string, error) { return ask(request, 20*time.Second) }

// Wait is Ask for what may take as long as a test wants it to.
func Wait(request any) (string, error) { return ask(request, 0) }

func ask(request any, limit time.Duration) (string, error) {
	wire, err := net.DialTimeout("tcp", address, 5*time.Second)
	if err != nil {
		return "", err
	}
	defer wire.Close()
	if limit > 0 {
		wire.SetDeadline(time.Now().Add(limit))
	}
	if err := json.NewEncoder(wire).Encode(request); err != nil {
		return "", err
	}
	answer, err := bufio.NewReader(wire).ReadString('\n')
	return strings.TrimSpace(answer), err
}

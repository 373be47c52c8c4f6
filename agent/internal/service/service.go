// Package service makes the agent a service of the target (Windows service, transient systemd unit or plain daemon) and,
// at its end, makes the service and its folder disappear.
package service

import (
	"log"
	"os"
	"path/filepath"
	"time"

	"sojourn.example/agent/internal/catalogue"
	"sojourn.example/agent/internal/config"
)

// Kinds, as in deploy.wsdl.
const (
	KindWindows = "windows-service"
	KindSystemd = "systemd"
	KindDaemon  = "daemon"
)

// stopPatience is how long a stop by the service manager waits for processes that should not be interrupted.
// It is below what systemd and Windows grant a service, so that the removal still gets its turn.
const stopPatience = 15 * time.Second

// Folder is the agent's own: the one that its executable lies in.
func Folder() (folder, executable string, err error) {
	executable, err = os.Executable()
	if err != nil {
		return "", "", err
	}
	return filepath.Dir(executable), executable, nil
}

// report writes the answer where the way in looks for it.
func report(folder string, ready *config.Ready) {
	if err := ready.Save(folder); err != nil {
		log.Printf("reporting: %v", err)
	}
}

func refused(err error) *config.Ready { return &config.Ready{Error: catalogue.As(err, "starting")} }

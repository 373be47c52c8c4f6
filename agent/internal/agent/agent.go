// Package agent is the agent's life: begin (port, key pair, firewall), serve while the lease lasts, and take everything back.
package agent

import (
	"errors"
	"log"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"

	"sojourn.example/agent/internal/catalogue"
	"sojourn.example/agent/internal/config"
	"sojourn.example/agent/internal/deploy"
	"sojourn.example/agent/internal/firewall"
	"sojourn.example/agent/internal/host"
	"sojourn.example/agent/internal/identity"
	"sojourn.example/agent/internal/lease"
)

// answerPatience is how long the end waits for answers that are on their way to the client.
const answerPatience = 5 * time.Second

// Agent is a serving agent.
type Agent struct {
	config     *config.Config
	deployment *deploy.Deployment
	server     *deploy.Server
	lease      *lease.Lease
	firewall   firewall.Firewall
	ready      config.Ready
}

// Start listens, opens the firewall and serves. On an error it has taken back what it did.
func Start(c *config.Config, folder, serviceKind, version string) (*Agent, error) {
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return nil, catalogue.New("SD-406", "detail", err.Error())
	}
	facts := host.Learn()
	id, err := identity.New(c.Name())
	if err != nil {
		return nil, err
	}
	listener, port, err := listen(c.Ports)
	if err != nil {
		return nil, err
	}
	walls := firewall.New()
	a := &Agent{config: c, firewall: walls, lease: lease.New(c.Lease())}
	closeRules := func() { _, _ = walls.Close(a.ofThisRun) }
	// A rule of this run can be there before its agent is: on Windows the service starts again after a reboot.
	if _, err := walls.Close(a.ofThisRun); err != nil {
		listener.Close()
		return nil, err
	}
	opened := false
	for _, address := range c.ControllerAddresses {
		rules, _, err := walls.Open(firewall.Rule{Name: c.Name(), Port: port, Protocol: firewall.TCP, Family: firewall.FamilyOf(address), Source: address})
		if err != nil {
			closeRules()
			listener.Close()
			return nil, err
		}
		opened = opened || len(rules) > 0
	}
	a.deployment = deploy.New(deploy.Settings{
		Config: c, Folder: folder, Version: version, Facts: facts, ServiceKind: serviceKind,
		Port: port, Lease: a.lease, Firewall: walls, RuleOpened: opened,
	})
	a.server = a.deployment.Server()
	go func() {
		if err := a.server.Serve(listener, id.Server(c.Fingerprint())); err != nil && !errors.Is(err, http.ErrServerClosed) {
			log.Printf("serving ended: %v", err)
		}
	}()
	a.ready = config.Ready{
		Run: c.Run, ProcessID: os.Getpid(), Port: port, Certificate: id.PEM(),
		FirewallKind: walls.Kind(), BootID: facts.BootID,
	}
	return a, nil
}

func (a *Agent) ofThisRun(r firewall.Rule) bool { return r.Run() == a.config.Run }

// Ready is what the way in is to be told.
func (a *Agent) Ready() *config.Ready { return &a.ready }

// listen takes the first free port of the range, on every address of both families.
func listen(ports config.Ports) (net.Listener, int, error) {
	for port := ports.First; port <= ports.Last; port++ {
		// "tcp" with an empty host is [::] dual-stack, or 0.0.0.0 where the target has no IPv6.
		if listener, err := net.Listen("tcp", ":"+strconv.Itoa(port)); err == nil {
			return listener, port, nil
		}
	}
	return nil, 0, catalogue.New("SD-601", "ports", ports.String())
}

// Wait serves until a Shutdown, the end of the lease, or a stop by the service manager; then no process that must not
// be interrupted is running any more, unless the service manager's patience is over first.
func (a *Agent) Wait(stop <-chan struct{}, patience time.Duration) {
	for {
		select {
		case <-a.deployment.ShutdownAsked():
			a.awaitProcesses(nil, stop)
			return
		case <-a.lease.Over():
			if a.lease.Alive() {
				continue
			}
			// Whoever comes back for the result of a long installation may renew the lease while it runs.
			if a.awaitProcesses(a.lease.Alive, stop) {
				return
			}
		case <-stop:
			a.awaitProcesses(nil, afterwards(patience))
			return
		}
	}
}

func afterwards(d time.Duration) <-chan struct{} {
	over := make(chan struct{})
	time.AfterFunc(d, func() { close(over) })
	return over
}

// awaitProcesses waits for the processes that are not safe to kill. It gives up where revived says so once something changed.
func (a *Agent) awaitProcesses(revived func() bool, stop <-chan struct{}) (done bool) {
	a.deployment.SetUnread(true)
	defer a.deployment.SetUnread(false)
	for {
		changed, running := a.deployment.Unfinished()
		if revived != nil && revived() {
			return false
		}
		if running == 0 {
			return true
		}
		select {
		case <-changed:
		case <-stop:
			return true
		}
	}
}

// End closes the port and the rules and ends what is safe to kill. The service and its folder are the caller's.
func (a *Agent) End() {
	a.server.Close(answerPatience)
	a.deployment.End()
	if _, err := a.firewall.Close(a.ofThisRun); err != nil {
		log.Printf("closing the firewall rules: %v", err)
	}
}

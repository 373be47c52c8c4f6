// This file keeps strangers at the door: a connection comes to the HTTP server once its client has shown the pinned certificate.

package deploy

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"sync"
	"time"
)

// maximumAtDoor bounds the connections whose handshake is not done. Each takes some 20 KB, 100 at most, and anybody who reaches the port can make
// them faster than headerTimeout ends them; the oldest makes room for the newest, and whoever is quick gets in all the same.
const maximumAtDoor = 256

// strangerBytes bounds what is read of a handshake, which TLS itself would hold 256 KiB of. A ClientHello and the certificate have some 3 KB.
const strangerBytes = 32 << 10

var errTooLong = errors.New("the handshake is too long")

// visitor is a connection of which only so much is read until it is let in.
type visitor struct {
	net.Conn
	left  int
	known bool // set between the handshake's last read and the next
}

func (v *visitor) Read(p []byte) (int, error) {
	if v.known {
		return v.Conn.Read(p)
	}
	if v.left == 0 {
		return 0, errTooLong
	}
	n, err := v.Conn.Read(p[:min(len(p), v.left)])
	v.left -= n
	return n, err
}

// acceptPause is how long nobody is let in after a connection could not be taken: there are no descriptors left.
const acceptPause = 50 * time.Millisecond

// door is a listener of connections whose handshake is done.
type door struct {
	net.Listener
	config   *tls.Config
	patience time.Duration // for a handshake
	admitted chan net.Conn
	closed   chan struct{}
	close    sync.Once

	mu      sync.Mutex
	waiting []net.Conn // the oldest first
}

func newDoor(listener net.Listener, config *tls.Config, patience time.Duration) *door {
	d := &door{Listener: listener, config: config, patience: patience, admitted: make(chan net.Conn), closed: make(chan struct{})}
	go d.watch()
	return d
}

func (d *door) watch() {
	for {
		connection, err := d.Listener.Accept()
		if err == nil {
			d.enter(connection)
			go d.handshake(connection)
			continue
		}
		select {
		case <-d.closed:
			return
		case <-time.After(acceptPause):
		}
	}
}

func (d *door) enter(connection net.Conn) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.waiting) == maximumAtDoor {
		d.waiting[0].Close()
		d.waiting = append(d.waiting[:0], d.waiting[1:]...)
	}
	d.waiting = append(d.waiting, connection)
}

func (d *door) leave(connection net.Conn) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i, c := range d.waiting {
		if c == connection {
			d.waiting = append(d.waiting[:i], d.waiting[i+1:]...)
			return
		}
	}
}

func (d *door) handshake(connection net.Conn) {
	limit, cancel := context.WithTimeout(context.Background(), d.patience)
	defer cancel()
	visiting := &visitor{Conn: connection, left: strangerBytes}
	encrypted := tls.Server(visiting, d.config)
	err := encrypted.HandshakeContext(limit)
	d.leave(connection)
	if err != nil {
		connection.Close()
		return
	}
	visiting.known = true
	select {
	case d.admitted <- encrypted:
	case <-d.closed:
		connection.Close()
	}
}

// Accept gives the next connection whose client is the pinned one.
func (d *door) Accept() (net.Conn, error) {
	select {
	case connection := <-d.admitted:
		return connection, nil
	case <-d.closed:
		return nil, net.ErrClosed
	}
}

// Close ends listening and sends away who waits.
func (d *door) Close() error {
	d.close.Do(func() { close(d.closed) })
	err := d.Listener.Close()
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, c := range d.waiting {
		c.Close()
	}
	return err
}

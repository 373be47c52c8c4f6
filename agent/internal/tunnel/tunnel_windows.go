// This file is the entrance on Windows: a named pipe, which the SMB server leads to through IPC$. Administrators and the system may
// open it, nobody else; both ends are pinned besides.

package tunnel

import (
	"errors"
	"net"
	"os"
	"sync"
	"unsafe"

	"golang.org/x/sys/windows"

	"sojourn.example/agent/internal/catalogue"
	"sojourn.example/agent/internal/config"
)

const (
	folder = `\\.\pipe\`
	// Protected from what is inherited; all rights for administrators and for the system, none for others.
	access = "D:P(A;;GA;;;BA)(A;;GA;;;SY)"
	// What the system keeps of what the other end has not read yet. A client sends up to 1 MiB at a time.
	bufferBytes = 1 << 20
	// From fileapi.h: a second pipe of the name would be somebody else's.
	firstInstance = 0x00080000
)

func listen(c *config.Config) (*Entrance, error) {
	listener, err := listenPipe(c.Name())
	if err != nil {
		return nil, catalogue.New("SD-406", "detail", "its pipe "+folder+c.Name()+": "+err.Error())
	}
	return &Entrance{Listener: listener, Place: c.Name()}, nil
}

// pipe is a listener: one instance of a pipe waits for the next client, and each client has one of its own.
type pipe struct {
	path       *uint16
	name       string
	descriptor *windows.SECURITY_DESCRIPTOR
	closing    windows.Handle // an event, set once it is closed

	mu      sync.Mutex     // Accept, one at a time
	waiting windows.Handle // the instance; 0: closed
	once    sync.Once
}

func listenPipe(name string) (*pipe, error) {
	path, err := windows.UTF16PtrFromString(folder + name)
	if err != nil {
		return nil, err
	}
	descriptor, err := windows.SecurityDescriptorFromString(access)
	if err != nil {
		return nil, err
	}
	closing, err := windows.CreateEvent(nil, 1, 0, nil)
	if err != nil {
		return nil, err
	}
	p := &pipe{path: path, name: name, descriptor: descriptor, closing: closing}
	if p.waiting, err = p.instance(firstInstance); err != nil {
		windows.CloseHandle(closing)
		return nil, err
	}
	return p, nil
}

// instance makes one more end of the pipe. It carries bytes, and takes clients from the network: they are who it is for.
func (p *pipe) instance(flags uint32) (windows.Handle, error) {
	attributes := windows.SecurityAttributes{SecurityDescriptor: p.descriptor}
	attributes.Length = uint32(unsafe.Sizeof(attributes))
	return windows.CreateNamedPipe(
		p.path, windows.PIPE_ACCESS_DUPLEX|windows.FILE_FLAG_OVERLAPPED|flags, windows.PIPE_TYPE_BYTE|windows.PIPE_READMODE_BYTE|windows.PIPE_WAIT,
		windows.PIPE_UNLIMITED_INSTANCES, bufferBytes, bufferBytes, 0, &attributes)
}

// Accept waits for a client. The next instance is there before this one is given away: whoever comes in between finds the pipe.
func (p *pipe) Accept() (net.Conn, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		if p.waiting == 0 {
			return nil, net.ErrClosed
		}
		taken := p.waiting
		connected := p.connect(taken)
		if errors.Is(connected, net.ErrClosed) {
			p.waiting = 0
			windows.CloseHandle(taken)
			return nil, net.ErrClosed
		}
		next, err := p.instance(0)
		if err != nil { // without memory, for instance; the one that there is stays
			windows.DisconnectNamedPipe(taken)
			return nil, err
		}
		p.waiting = next
		if connected != nil {
			windows.CloseHandle(taken)
			if errors.Is(connected, windows.ERROR_NO_DATA) { // it came and went
				continue
			}
			return nil, connected
		}
		// Overlapped, so the runtime waits for it, and deadlines work.
		return &connection{File: os.NewFile(uintptr(taken), folder+p.name), address: address(p.name)}, nil
	}
}

// connect waits until a client has opened an instance, or the listener is closed.
func (p *pipe) connect(instance windows.Handle) error {
	event, err := windows.CreateEvent(nil, 1, 0, nil)
	if err != nil {
		return err
	}
	defer windows.CloseHandle(event)
	overlapped := windows.Overlapped{HEvent: event}
	switch err := windows.ConnectNamedPipe(instance, &overlapped); err {
	case nil, windows.ERROR_PIPE_CONNECTED:
		return nil
	case windows.ERROR_IO_PENDING:
	default:
		return err
	}
	which, err := windows.WaitForMultipleObjects([]windows.Handle{event, p.closing}, false, windows.INFINITE)
	var done uint32
	if err != nil || which != windows.WAIT_OBJECT_0 {
		windows.CancelIoEx(instance, &overlapped)
		windows.GetOverlappedResult(instance, &overlapped, &done, true) // until then the system may write to it
		if err != nil {
			return err
		}
		return net.ErrClosed
	}
	return windows.GetOverlappedResult(instance, &overlapped, &done, true)
}

// Close ends listening; who is connected stays so.
func (p *pipe) Close() error {
	err := net.ErrClosed
	p.once.Do(func() {
		err = windows.SetEvent(p.closing)
		p.mu.Lock() // Accept is over
		defer p.mu.Unlock()
		if p.waiting != 0 {
			windows.CloseHandle(p.waiting)
			p.waiting = 0
		}
		windows.CloseHandle(p.closing)
	})
	return err
}

func (p *pipe) Addr() net.Addr { return address(p.name) }

// connection is a client's.
type connection struct {
	*os.File
	address
}

// Read and Write give errors as a socket's: of a file's, which hide that they are temporary, TLS takes a deadline for the end.

func (c *connection) Read(p []byte) (int, error) {
	n, err := c.File.Read(p)
	return n, c.asNet("read", err)
}

func (c *connection) Write(p []byte) (int, error) {
	n, err := c.File.Write(p)
	return n, c.asNet("write", err)
}

func (c *connection) asNet(what string, err error) error {
	if path, ok := errors.AsType[*os.PathError](err); ok {
		return &net.OpError{Op: what, Net: c.Network(), Addr: c.address, Err: path.Err}
	}
	return err
}

func (c *connection) LocalAddr() net.Addr  { return c.address }
func (c *connection) RemoteAddr() net.Addr { return c.address }

// address is a pipe's name.
type address string

func (address) Network() string  { return "pipe" }
func (a address) String() string { return folder + string(a) }

package tunnel

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/windows"

	"sojourn.example/agent/internal/config"
)

func begin(t *testing.T) *Entrance {
	t.Helper()
	entrance, err := Listen(&config.Config{Run: "0123456789ab"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { entrance.Close() })
	return entrance
}

func dial(t *testing.T, name string) *os.File {
	t.Helper()
	path, err := windows.UTF16PtrFromString(folder + name)
	if err != nil {
		t.Fatal(err)
	}
	for {
		handle, err := windows.CreateFile(path, windows.GENERIC_READ|windows.GENERIC_WRITE, 0, nil, windows.OPEN_EXISTING, windows.FILE_FLAG_OVERLAPPED, 0)
		if err == nil {
			return os.NewFile(uintptr(handle), name)
		}
		if !errors.Is(err, windows.ERROR_PIPE_BUSY) { // between one instance that is taken and the next
			t.Fatal(err)
		}
		runtime.Gosched()
	}
}

func TestAPipeCarriesBytesBothWaysAtOnceForManyClients(t *testing.T) {
	entrance := begin(t)
	if entrance.Place != "sojourn-0123456789ab" || entrance.Port != 0 {
		t.Fatalf("it is at %q, port %d", entrance.Place, entrance.Port)
	}
	go func() {
		for {
			connection, err := entrance.Accept()
			if err != nil {
				return
			}
			go func() {
				defer connection.Close()
				io.Copy(connection, connection)
			}()
		}
	}()
	data := make([]byte, 5<<20)
	rand.Read(data)
	var clients sync.WaitGroup
	for range 8 {
		client := dial(t, entrance.Place)
		clients.Go(func() {
			defer client.Close()
			go client.Write(data)
			back := make([]byte, len(data))
			if n, err := io.ReadFull(client, back); err != nil || !bytes.Equal(back, data) {
				t.Errorf("%d of %d bytes came back: %v", n, len(data), err)
			}
		})
	}
	clients.Wait()
}

func TestWhatWasWrittenBeforeAnEndIsRead(t *testing.T) {
	entrance := begin(t)
	client := dial(t, entrance.Place)
	defer client.Close()
	connection, err := entrance.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := connection.Write([]byte("last words")); err != nil {
		t.Fatal(err)
	}
	connection.Close()
	if text, err := io.ReadAll(client); string(text) != "last words" {
		t.Errorf("%q came: %v", text, err)
	}
}

func TestADeadlineEndsAWait(t *testing.T) {
	entrance := begin(t)
	client := dial(t, entrance.Place)
	defer client.Close()
	connection, err := entrance.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer connection.Close()
	connection.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	var failure net.Error
	if _, err := connection.Read(make([]byte, 1)); !errors.As(err, &failure) || !failure.Timeout() || !failure.Temporary() { // TLS goes by the latter
		t.Errorf("reading gave %v", err)
	}
	connection.SetReadDeadline(time.Time{})
	if _, err := client.Write([]byte("x")); err != nil {
		t.Error(err)
	}
	if _, err := connection.Read(make([]byte, 1)); err != nil {
		t.Error(err)
	}
}

func TestAnEntranceThatIsClosedTakesNobodyAndKeepsWhoIsIn(t *testing.T) {
	entrance := begin(t)
	client := dial(t, entrance.Place)
	defer client.Close()
	connection, err := entrance.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer connection.Close()
	ended := make(chan error)
	go func() {
		_, err := entrance.Accept()
		ended <- err
	}()
	if err := entrance.Close(); err != nil {
		t.Error(err)
	}
	if err := <-ended; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept gave %v", err)
	}
	path, _ := windows.UTF16PtrFromString(folder + entrance.Place)
	if _, err := windows.CreateFile(path, windows.GENERIC_READ, 0, nil, windows.OPEN_EXISTING, 0, 0); !errors.Is(err, windows.ERROR_FILE_NOT_FOUND) && !errors.Is(err, windows.ERROR_PIPE_BUSY) {
		t.Errorf("somebody who comes then gets %v", err)
	}
	if _, err := client.Write([]byte("x")); err != nil {
		t.Error(err)
	}
	if _, err := connection.Read(make([]byte, 1)); err != nil {
		t.Error(err)
	}
}

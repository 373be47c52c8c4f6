// This file fuzzes the service as a whole: bytes as they come out of a client's TLS connection, through the same HTTP server, to operations that do nothing.

package deploy

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"sojourn.example/agent/internal/catalogue"
	"sojourn.example/agent/internal/config"
	"sojourn.example/agent/internal/host"
	"sojourn.example/agent/internal/lease"
	"sojourn.example/agent/internal/mtom"
	"sojourn.example/agent/internal/soap"
)

// connection is one whose client has sent all that it will, and takes every answer.
type connection struct {
	*bytes.Reader
	answers bytes.Buffer
	over    chan struct{}
	end     sync.Once
}

func (c *connection) Write(p []byte) (int, error) { return c.answers.Write(p) }
func (c *connection) Close() error                { c.end.Do(func() { close(c.over) }); return nil }

// CloseWrite is called where the server waits for half a second before it closes; nothing is written after it.
func (c *connection) CloseWrite() error                { return c.Close() }
func (c *connection) LocalAddr() net.Addr              { return &net.TCPAddr{IP: net.IPv6loopback, Port: 62286} }
func (c *connection) RemoteAddr() net.Addr             { return &net.TCPAddr{IP: net.IPv6loopback, Port: 1} }
func (c *connection) SetDeadline(time.Time) error      { return nil }
func (c *connection) SetReadDeadline(time.Time) error  { return nil }
func (c *connection) SetWriteDeadline(time.Time) error { return nil }

// queue is a listener for such connections.
type queue chan net.Conn

func (q queue) Accept() (net.Conn, error) {
	if c, ok := <-q; ok {
		return c, nil
	}
	return nil, net.ErrClosed
}
func (queue) Close() error   { return nil }
func (queue) Addr() net.Addr { return &net.TCPAddr{} }

// harmless is a deployment whose operations check what they get, as far as that touches nothing, and answer with what came.
type harmless struct {
	*Deployment
	sent   int // length of what the client sends
	wrong  []string
	served *Server
}

func (h *harmless) fail(format string, args ...any) {
	h.wrong = append(h.wrong, fmt.Sprintf(format, args...))
}

func newHarmless(f *testing.F) *harmless {
	h := &harmless{Deployment: New(Settings{
		Config: &config.Config{Run: "0123456789ab"}, Folder: f.TempDir(), Version: "1.2.3", Facts: host.Learn(), Lease: lease.New(time.Hour), Firewall: &wall{},
	})}
	h.Deployment.Close() // no process begins any more
	operations := h.operations()
	operations["Execute"] = handle(func(c *call, r *Execute) (*ExecuteResponse, error) {
		_, err := h.execute(c, r)
		if known := catalogue.As(err, ""); err == nil || known.Code != "SD-503" {
			return nil, err // what it refuses before it would begin
		}
		input, err := h.read(c, r.Input)
		if err != nil {
			return nil, err
		}
		output := soap.Bytes(input)
		output.Size = inlinePayload + 1 // an attachment, where the client takes one
		return &ExecuteResponse{Execution{Handle: given(r.Handle), StandardOutput: output, StandardError: soap.Bytes(nil)}}, nil
	})
	operations["PutFile"] = handle(func(c *call, r *PutFile) (*PutFileResponse, error) {
		if err := h.path(r.Path); err != nil {
			return nil, err
		}
		if _, err := h.read(c, &r.Data); err != nil {
			return nil, err
		}
		sum, err := c.bytes(r.Checksum, maximumChecksum)
		if err != nil {
			return nil, err
		}
		return &PutFileResponse{r.TotalSize, soap.Bytes(sum)}, nil
	})
	operations["GetFile"] = handle(func(_ *call, r *GetFile) (*GetFileResponse, error) {
		return &GetFileResponse{Data: soap.Bytes([]byte(r.Path)), Checksum: soap.Bytes([]byte(given(r.User)))}, h.path(r.Path)
	})
	operations["Stat"] = handle(func(_ *call, r *Stat) (*StatResponse, error) {
		return &StatResponse{FileStatus{Path: r.Path, Kind: "absent"}}, h.path(r.Path)
	})
	operations["Remove"] = handle(func(_ *call, r *Remove) (*RemoveResponse, error) { return &RemoveResponse{}, h.path(r.Path) })
	operations["Extract"] = handle(func(_ *call, r *Extract) (*ExtractResponse, error) {
		return &ExtractResponse{}, errors.Join(h.path(r.Path), h.path(r.Folder))
	})
	operations["QueryPackages"] = handle(func(_ *call, r *QueryPackages) (*QueryPackagesResponse, error) {
		return &QueryPackagesResponse{[]Package{{Manager: given(r.Manager), Name: given(r.Name)}}}, nil
	})
	operations["RemoveLeftovers"] = handle(func(_ *call, r *RemoveLeftovers) (*RemoveLeftoversResponse, error) {
		return &RemoveLeftoversResponse{[]Leftover{{Run: given(r.Run)}}}, nil
	})
	h.served = newServer(operations)
	h.served.http.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			if r := recover(); r != nil {
				if r != http.ErrAbortHandler {
					h.fail("the handler panicked: %v", r)
				}
				panic(r)
			}
		}()
		r.TLS = &tls.ConnectionState{Version: tls.VersionTLS13}
		h.served.ServeHTTP(w, r)
	})
	return h
}

// read gives a binary element, which must not be more than what was sent.
func (h *harmless) read(c *call, r *soap.Received) ([]byte, error) {
	if r == nil {
		return nil, nil
	}
	from, err := c.open(*r)
	if err != nil {
		return nil, err
	}
	all, err := io.ReadAll(from)
	if len(all) > h.sent {
		h.fail("%d bytes came of %d", len(all), h.sent)
	}
	if err != nil {
		return nil, badRequest(err.Error())
	}
	return all, nil
}

// path resolves as the operations do: what is relative stays in the folder.
func (h *harmless) path(path string) error {
	got, err := h.files.Resolve(path)
	if err == nil && !filepath.IsAbs(path) && got != h.Folder && !strings.HasPrefix(got, h.Folder+string(filepath.Separator)) {
		h.fail("%q leads to %q", path, got)
	}
	return err
}

// FuzzServer: every answer is one of HTTP's refusals, a well-formed envelope or a fault of the catalogue, and nothing panics.
func FuzzServer(f *testing.F) {
	h := newHarmless(f)
	incoming := make(queue)
	go func() { _ = h.served.http.Serve(incoming) }()
	f.Cleanup(func() { close(incoming) })

	post := func(contentType, body string) {
		f.Add([]byte(fmt.Sprintf("POST / HTTP/1.1\r\nHost: [::1]:62286\r\nAccept: multipart/related\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s",
			contentType, len(body), body)))
	}
	f.Add([]byte("GET /?wsdl HTTP/1.1\r\nHost: [::1]:62286\r\n\r\n"))
	f.Add([]byte("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nxPOST /../ HTTP/1.0\r\n\r\n"))
	f.Add([]byte("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\nContent-Type: text/xml\r\n\r\n" +
		fmt.Sprintf("%x\r\n%s\r\n0\r\nTrailer: a\r\n\r\n", len(envelope("GetInfo", "")), envelope("GetInfo", ""))))
	contentType, body := mtomPut("a/../b", 5, strings.NewReader("hello"), make([]byte, 32))
	all, _ := io.ReadAll(body)
	post(contentType, string(all))
	post("text/xml", envelope("PutFile", "<Path>../a</Path><Offset>0</Offset><TotalSize>2</TotalSize><Data>aGk=</Data><Checksum/>"))
	post("text/xml", `<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]>`+envelope("Stat", "<Path>&b;</Path>"))
	post("text/xml", strings.Replace(envelope("GetInfo", ""), "<e:Body>", `<e:Header><x e:mustUnderstand="1"/></e:Header><e:Body>`, 1))
	post("text/xml", envelope("Execute", "<CommandLine>true</CommandLine><Input>"+strings.Repeat("QUJD", 50)+"</Input><WaitSeconds>-1</WaitSeconds>"))

	f.Fuzz(func(t *testing.T, raw []byte) {
		h.sent, h.wrong = len(raw), nil
		h.Firewall = &wall{}
		c := &connection{Reader: bytes.NewReader(raw), over: make(chan struct{})}
		incoming <- c
		<-c.over
		if len(h.wrong) > 0 {
			t.Fatal(h.wrong)
		}
		answers := bufio.NewReader(&c.answers)
		for {
			if _, err := answers.Peek(1); err != nil {
				return
			}
			if !checkAnswer(t, answers, len(raw)) {
				return
			}
		}
	})
}

// What Go's server, and this one, say to what is no request to an operation.
var refusals = []int{
	http.StatusContinue, http.StatusBadRequest, http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusExpectationFailed,
	http.StatusRequestHeaderFieldsTooLarge, http.StatusNotImplemented, http.StatusHTTPVersionNotSupported,
}

// checkAnswer looks at one answer; false: nothing after it can be read.
func checkAnswer(t *testing.T, from *bufio.Reader, sent int) bool {
	t.Helper()
	response, err := http.ReadResponse(from, nil)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(response.Body)
	if slices.Contains(refusals, response.StatusCode) {
		return err == nil
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return false // a request that broke off gets no whole answer
	}
	if err != nil {
		t.Fatal(err)
	}
	media, parameters, err := mime.ParseMediaType(response.Header.Get("Content-Type"))
	if err != nil {
		t.Fatal(err)
	}
	switch {
	case response.StatusCode == http.StatusInternalServerError && media == "text/xml":
		checkFault(t, text)
	case response.StatusCode == http.StatusOK && media == "text/xml":
		wellFormed(t, bytes.NewReader(text))
	case response.StatusCode == http.StatusOK && media == "multipart/related":
		message, err := mtom.NewReader(bytes.NewReader(text), parameters)
		if err != nil {
			t.Fatal(err)
		}
		root, err := message.Root()
		if err != nil {
			t.Fatal(err)
		}
		wellFormed(t, root)
		for i := range 2 {
			data, err := message.Open(soap.ContentID(i))
			if err != nil {
				t.Fatal(err)
			}
			if n, err := io.Copy(io.Discard, data); err != nil || int(n) > sent {
				t.Fatal(n, err)
			}
		}
	default:
		t.Fatalf("%d %s %s", response.StatusCode, media, text)
	}
	return true
}

func wellFormed(t *testing.T, from io.Reader) {
	t.Helper()
	for decoder := xml.NewDecoder(from); ; {
		if _, err := decoder.Token(); err == io.EOF {
			return
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

func checkFault(t *testing.T, text []byte) {
	t.Helper()
	var fault struct {
		FaultCode   string `xml:"Body>Fault>faultcode"`
		FaultString string `xml:"Body>Fault>faultstring"`
		Code        string `xml:"Body>Fault>detail>Fault>Code"`
	}
	if err := xml.Unmarshal(text, &fault); err != nil || fault.FaultString == "" {
		t.Fatalf("%v: %s", err, text)
	}
	switch fault.FaultCode {
	case "s:VersionMismatch", "s:MustUnderstand":
		return
	case "s:Client":
		if fault.Code == "SD-504" {
			return
		}
	case "s:Server":
		if catalogue.Known(fault.Code) && fault.Code != "SD-903" { // that would be a panic, or an error without a code
			return
		}
	}
	t.Fatalf("%s", text)
}

// Package deploy is the service itself: it answers HTTP requests of the pinned client, one operation of deploy.wsdl each.
package deploy

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"mime"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"sojourn.example/agent/api"
	"sojourn.example/agent/internal/catalogue"
	"sojourn.example/agent/internal/mtom"
	"sojourn.example/agent/internal/soap"
)

const (
	idleTimeout = 10 * time.Minute
	headerBytes = 16 << 10
)

// Deadlines of a connection; tests shorten them. A transfer may take as long as it likes while bytes move.
var (
	headerTimeout = 10 * time.Second // for the handshake and each request's header
	stallTimeout  = 60 * time.Second // no byte in this time: the peer is gone
	drainTimeout  = 60 * time.Second
)

// call is one request on its way: what an operation may need of it besides its message.
type call struct {
	context     context.Context
	tlsVersion  uint16
	attachments *mtom.Reader // nil: the request came without
	after       func()       // run once the answer is out
}

// open gives the bytes of a binary element, wherever they travel.
func (c *call) open(r soap.Received) (io.Reader, error) {
	if r.ContentID == "" {
		return bytes.NewReader(r.Inline), nil
	}
	if c.attachments == nil {
		return nil, badRequest("it names an attachment but has none")
	}
	part, err := c.attachments.Open(r.ContentID)
	if err != nil {
		return nil, badRequest(err.Error())
	}
	return part, nil
}

// bytes gives a binary element that must be short.
func (c *call) bytes(r soap.Received, most int64) ([]byte, error) {
	part, err := c.open(r)
	if err != nil {
		return nil, err
	}
	all, err := io.ReadAll(io.LimitReader(part, most+1))
	if err != nil {
		return nil, badRequest(err.Error())
	}
	if int64(len(all)) > most {
		return nil, badRequest("a binary element is too long")
	}
	return all, nil
}

func badRequest(detail string) error { return catalogue.New("SD-504", "detail", detail) }

// operation is a WSDL operation: a maker of its request and the work.
type operation struct {
	request func() any
	answer  func(*call, any) (any, error)
}

func handle[Request, Answer any](work func(*call, *Request) (*Answer, error)) operation {
	return operation{
		request: func() any { return new(Request) },
		answer: func(c *call, request any) (any, error) {
			answer, err := work(c, request.(*Request))
			if err != nil {
				return nil, err
			}
			return answer, nil
		},
	}
}

// Server answers the requests.
type Server struct {
	operations map[string]operation
	http       *http.Server
}

func newServer(operations map[string]operation) *Server {
	s := &Server{operations: operations}
	s.http = &http.Server{
		Handler:           s,
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    headerBytes,
		ConnState: func(c net.Conn, state http.ConnState) {
			if state == http.StateIdle { // the answer is out: its deadline is not that of what comes
				c.SetWriteDeadline(time.Time{})
			}
		},
		// Strangers' failed handshakes are no news; what is, is logged where it happens.
		ErrorLog: log.New(io.Discard, "", 0),
	}
	return s
}

// Serve answers the clients that these TLS settings let in, until Close.
func (s *Server) Serve(listener net.Listener, config *tls.Config) error {
	return s.http.Serve(newDoor(listener, config, s.http.ReadHeaderTimeout))
}

// Close lets running answers end, for a while, and then cuts what is left.
func (s *Server) Close(patience time.Duration) {
	limit, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if s.http.Shutdown(limit) != nil {
		s.http.Close()
	}
}

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	// net/http reads to the end what a refused request still sends, and writes what is left of an answer: it would wait for the client for ever.
	control, limit := http.NewResponseController(w), time.Now().Add(stallTimeout)
	control.SetReadDeadline(limit)
	control.SetWriteDeadline(limit)
	switch {
	case r.URL.Path != "/":
		http.Error(w, "not found", http.StatusNotFound)
	case r.Method == http.MethodGet && strings.EqualFold(r.URL.RawQuery, "wsdl"):
		s.wsdl(w, r)
	case r.Method == http.MethodPost:
		s.post(w, r)
	default:
		w.Header().Set("Allow", "POST")
		http.Error(w, "method not allowed", http.StatusMethodNotAllowed) // BP 1.1, R1114
	}
}

func (s *Server) wsdl(w http.ResponseWriter, r *http.Request) {
	const placeholder = `location="https://localhost:62286/"`
	local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	address := r.Host
	if address == "" && local != nil {
		address = local.String()
	}
	var location bytes.Buffer
	for _, c := range []byte(address) { // a Host header is the client's own text: only what an address can hold
		if c == '.' || c == ':' || c == '[' || c == ']' || c == '-' || c == '%' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' {
			location.WriteByte(c)
		}
	}
	w.Header().Set("Content-Type", "text/xml; charset=utf-8")
	w.Write(bytes.Replace(api.WSDL, []byte(placeholder), []byte(`location="https://`+location.String()+`/"`), 1))
}

// pacer moves the connection's deadlines along with the bytes.
type pacer struct {
	control *http.ResponseController
	body    io.Reader
	to      io.Writer
}

func (p *pacer) Read(b []byte) (int, error) {
	p.control.SetReadDeadline(time.Now().Add(stallTimeout))
	return p.body.Read(b)
}

func (p *pacer) Write(b []byte) (int, error) {
	p.control.SetWriteDeadline(time.Now().Add(stallTimeout))
	return p.to.Write(b)
}

func (s *Server) post(w http.ResponseWriter, r *http.Request) {
	pace := &pacer{http.NewResponseController(w), r.Body, w}
	// A fault must get out while the client still sends; what it sends is read to the end all the same,
	// or the connection's reset could overtake the fault.
	pace.control.EnableFullDuplex()
	c := &call{context: r.Context(), tlsVersion: r.TLS.Version}
	name, answer, err := s.perform(c, r.Header.Get("Content-Type"), pace)
	if err != nil {
		s.fault(w, pace, err)
	} else {
		s.answer(w, r, c, pace, name, answer)
	}
	pace.control.SetReadDeadline(time.Now().Add(drainTimeout))
	_, broken := io.Copy(io.Discard, r.Body) // has its own pool of buffers
	// For the end of the answer, which net/http writes.
	pace.control.SetWriteDeadline(time.Now().Add(stallTimeout))
	if broken == nil {
		pace.control.SetReadDeadline(time.Time{})
	}
	if c.after != nil {
		c.after()
	}
	if broken != nil {
		// What comes next would be taken for a request. The deadline is over, and stays so: net/http would wait for the rest for ever.
		pace.control.SetReadDeadline(time.Now())
		pace.control.Flush()
		panic(http.ErrAbortHandler)
	}
}

// perform reads the envelope and does what it asks for.
func (s *Server) perform(c *call, contentType string, body io.Reader) (name string, answer any, err error) {
	defer func() {
		if r := recover(); r != nil {
			log.Printf("panic in %s: %v", name, r)
			answer, err = nil, catalogue.New("SD-903", "step", "answering "+name, "detail", fmt.Sprint(r))
		}
	}()
	media, parameters, err := mime.ParseMediaType(contentType)
	if err != nil {
		return "", nil, badRequest("its Content-Type is malformed")
	}
	envelope := body
	switch media {
	case "text/xml":
	case "multipart/related":
		if c.attachments, err = mtom.NewReader(body, parameters); err == nil {
			envelope, err = c.attachments.Root()
		}
		if err != nil {
			return "", nil, badRequest(err.Error())
		}
	default:
		return "", nil, badRequest("its Content-Type is neither text/xml nor multipart/related")
	}
	var request any
	name, err = soap.Decode(envelope, func(operation string) any {
		found, ok := s.operations[operation]
		if !ok {
			return nil
		}
		request = found.request()
		return request
	})
	if err != nil {
		return name, nil, err
	}
	answer, err = s.operations[name].answer(c, request)
	return name, answer, err
}

// inlinePayload is what of a payload goes inside the envelope whatever the client takes: to a client that reads MIME slowly, as Python does, an
// attachment of a few bytes costs more than the rest of the answer.
const inlinePayload = 16 << 10

// carriesPayload tells which answers may be MTOM: those whose payload is long, or may be.
func carriesPayload(answer any) bool {
	switch answer := answer.(type) {
	case *GetFileResponse:
		return true
	case *ExecuteResponse:
		return answer.Execution.StandardOutput.Size+answer.Execution.StandardError.Size > inlinePayload
	case *ReadOutputResponse:
		return answer.Execution.StandardOutput.Size+answer.Execution.StandardError.Size > inlinePayload
	}
	return false
}

func (s *Server) answer(w http.ResponseWriter, r *http.Request, c *call, pace *pacer, name string, message any) {
	takesMTOM := c.attachments != nil
	for _, accepted := range r.Header.Values("Accept") {
		takesMTOM = takesMTOM || strings.Contains(strings.ToLower(accepted), "multipart/related")
	}
	asMTOM := takesMTOM && carriesPayload(message)
	envelope := soap.Encode(name+"Response", message, asMTOM)
	var err error
	if asMTOM {
		err = writeMTOM(w, pace, envelope)
	} else {
		w.Header().Set("Content-Type", "text/xml; charset=utf-8")
		err = envelope.WriteInline(pace)
	}
	if err != nil {
		// The status line is out: breaking the connection is the only way left to say that the answer is not whole.
		panic(http.ErrAbortHandler)
	}
}

func writeMTOM(w http.ResponseWriter, pace *pacer, envelope *soap.Answer) error {
	message := mtom.NewWriter(pace)
	w.Header().Set("Content-Type", message.ContentType())
	w.Header().Set("MIME-Version", "1.0")
	if err := message.Root(); err != nil {
		return err
	}
	if err := envelope.WriteRoot(pace); err != nil {
		return err
	}
	for i, payload := range envelope.Payloads() {
		if err := message.Attachment(soap.ContentID(i)); err != nil {
			return err
		}
		if err := payload.Write(pace); err != nil {
			return err
		}
	}
	return message.Close()
}

// fault answers with a SOAP fault; HTTP 500, as BP 1.1 R1126 has it.
func (s *Server) fault(w http.ResponseWriter, pace *pacer, err error) {
	code, known := soap.FaultServer, catalogue.As(err, "answering")
	if format, ok := errors.AsType[*soap.FormatError](err); ok {
		code, known = format.FaultCode, catalogue.New("SD-504", "detail", format.Detail)
	} else if known.Code == "SD-504" {
		code = soap.FaultClient
	}
	text := soap.Fault(code, known)
	w.Header().Set("Content-Type", "text/xml; charset=utf-8")
	w.Header().Set("Content-Length", strconv.Itoa(len(text)))
	w.WriteHeader(http.StatusInternalServerError)
	pace.Write(text)
	pace.control.Flush()
}

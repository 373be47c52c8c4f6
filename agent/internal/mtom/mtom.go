// Package mtom reads and writes the MIME packaging of MTOM/XOP messages as streams; the envelope in the root part is soap's.
package mtom

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"strings"
)

// keepBytes is the most that is held of attachments which come before they are asked for, with their ids. A checksum fits, a file does not.
const keepBytes = 64 << 10

// maximumParts bounds how many parts of a message are looked at.
const maximumParts = 64

// Reader gives the parts of a request in the order in which they come. Only one part can be read at a time.
type Reader struct {
	parts *multipart.Reader
	root  string
	kept  map[string][]byte
	room  int
	seen  int
}

// NewReader begins a multipart/related body with the parameters of its Content-Type.
func NewReader(body io.Reader, parameters map[string]string) (*Reader, error) {
	boundary := parameters["boundary"]
	if boundary == "" || len(boundary) > 70 { // RFC 2046, 5.1.1
		return nil, errors.New("the multipart boundary is missing or too long")
	}
	return &Reader{
		parts: multipart.NewReader(body, boundary),
		root:  strings.Trim(parameters["start"], "<>"),
		kept:  make(map[string][]byte),
		room:  keepBytes,
	}, nil
}

func (r *Reader) next() (id string, part io.Reader, err error) {
	if r.seen++; r.seen > maximumParts {
		return "", nil, errors.New("the message has too many parts")
	}
	raw, err := r.parts.NextRawPart()
	if err == io.EOF {
		return "", nil, io.EOF
	}
	if err != nil {
		return "", nil, fmt.Errorf("the multipart body is broken: %w", err)
	}
	id = strings.Trim(strings.TrimSpace(raw.Header.Get("Content-Id")), "<>")
	switch strings.ToLower(strings.TrimSpace(raw.Header.Get("Content-Transfer-Encoding"))) {
	case "", "binary", "8bit", "7bit":
		return id, raw, nil
	case "base64":
		return id, base64.NewDecoder(base64.StdEncoding, raw), nil
	}
	return "", nil, errors.New("a part has an unknown Content-Transfer-Encoding")
}

// Root gives the part that holds the envelope: the one that 'start' names, else the first.
func (r *Reader) Root() (io.Reader, error) {
	if r.root == "" {
		_, part, err := r.next()
		if err == io.EOF {
			return nil, errors.New("the multipart body has no part")
		}
		return part, err
	}
	return r.Open(r.root)
}

// Open gives the attachment of this content id. Attachments that come before it are kept while they are small.
func (r *Reader) Open(id string) (io.Reader, error) {
	if kept, ok := r.kept[id]; ok {
		return bytes.NewReader(kept), nil
	}
	for {
		found, part, err := r.next()
		if err == io.EOF {
			return nil, fmt.Errorf("the message has no attachment '%.80s'", id)
		}
		if err != nil {
			return nil, err
		}
		if found == id {
			return part, nil
		}
		kept, err := io.ReadAll(io.LimitReader(part, int64(r.room)+1))
		if err != nil {
			return nil, err
		}
		size := len(found) + len(kept) // an id may be as long as a header may
		if size > r.room {
			return nil, fmt.Errorf("the attachment '%.80s' comes before its turn and is too long to keep", found)
		}
		r.room -= size
		r.kept[found] = kept
	}
}

// Writer writes an answer: the root part first, then the attachments.
type Writer struct {
	to       io.Writer
	boundary string
}

const rootID = "envelope@sojourn.deploy"

// NewWriter begins an answer.
func NewWriter(to io.Writer) *Writer {
	var random [16]byte
	rand.Read(random[:])
	return &Writer{to, "sojourn-" + hex.EncodeToString(random[:])} // 128 random bits: no payload holds them
}

// ContentType is the answer's Content-Type (XOP, 4.1, and RFC 2387).
func (w *Writer) ContentType() string {
	return `multipart/related; type="application/xop+xml"; start="<` + rootID + `>"; start-info="text/xml"; boundary="` + w.boundary + `"`
}

// Root begins the root part; the envelope is to be written next.
func (w *Writer) Root() error {
	return w.header("--", `application/xop+xml; charset=UTF-8; type="text/xml"`, rootID)
}

// Attachment begins an attachment; its bytes are to be written next.
func (w *Writer) Attachment(id string) error {
	return w.header("\r\n--", "application/octet-stream", id)
}

func (w *Writer) header(lead, contentType, id string) error {
	_, err := io.WriteString(w.to, lead+w.boundary+"\r\nContent-Type: "+contentType+
		"\r\nContent-Transfer-Encoding: binary\r\nContent-ID: <"+id+">\r\n\r\n")
	return err
}

// Close ends the message.
func (w *Writer) Close() error {
	_, err := io.WriteString(w.to, "\r\n--"+w.boundary+"--\r\n")
	return err
}

// This file reads a request's envelope into the struct of its operation.

package soap

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/xml"
	"errors"
	"io"
	"math"
	"net/url"
	"reflect"
	"strconv"
	"strings"
)

// tokens gives the XML tokens of an untrusted envelope and refuses what SOAP 1.1 forbids or nobody sane sends.
type tokens struct {
	*xml.Decoder
	bytes           *tagged
	depth, elements int
}

// tagged bounds each tag while it is read: once xml.Decoder gives one, a million attributes have taken 20 times what was sent.
type tagged struct {
	*bufio.Reader
	last  byte
	at    int  // bytes of the present token so far
	isTag bool // of an element: not text, comment or instruction
}

// begin is told of each token; the decoder has read the '<' of one that follows text.
func (t *tagged) begin() {
	t.at, t.isTag = 0, false
	if t.last == '<' {
		t.at, t.isTag = 1, true
	}
}

func (t *tagged) ReadByte() (byte, error) {
	c, err := t.Reader.ReadByte()
	if err != nil {
		return c, err
	}
	switch t.at {
	case 0:
		t.isTag = c == '<'
	case 1:
		t.isTag = t.isTag && c != '!' && c != '?'
	}
	if t.at++; t.isTag && t.at > MaximumTag {
		return 0, malformed("a tag of the envelope is longer than %d bytes", MaximumTag)
	}
	t.last = c
	return c, nil
}

// limited says that the envelope is too long, where io.LimitedReader would say that it ended.
type limited struct {
	from io.Reader
	left int
}

func (l *limited) Read(p []byte) (int, error) {
	if l.left <= 0 {
		return 0, malformed("the envelope is longer than %d bytes; send binary data as MTOM attachments", MaximumEnvelope)
	}
	if len(p) > l.left {
		p = p[:l.left]
	}
	n, err := l.from.Read(p)
	l.left -= n
	return n, err
}

func (t *tokens) next() (xml.Token, error) {
	for {
		t.bytes.begin()
		token, err := t.Token()
		if err != nil {
			if format, ok := errors.AsType[*FormatError](err); ok {
				return nil, format
			}
			return nil, malformed("the envelope is not well-formed XML: %v", err)
		}
		switch token := token.(type) {
		case xml.StartElement:
			t.elements++
			t.depth++
			if t.depth > MaximumDepth || t.elements > MaximumElements {
				return nil, malformed("the envelope has too many elements")
			}
			return token, nil
		case xml.EndElement:
			t.depth--
			return token, nil
		case xml.CharData:
			return token, nil
		case xml.Directive: // SOAP 1.1, 3: no document type declaration
			return nil, malformed("the envelope has a document type declaration")
		case xml.ProcInst:
			if token.Target != "xml" { // SOAP 1.1, 3: no processing instructions
				return nil, malformed("the envelope has a processing instruction")
			}
		}
	}
}

// nextElement gives the next start or end of an element; text between elements must be white space.
func (t *tokens) nextElement() (start *xml.StartElement, err error) {
	for {
		token, err := t.next()
		if err != nil {
			return nil, err
		}
		switch token := token.(type) {
		case xml.StartElement:
			return &token, nil
		case xml.EndElement:
			return nil, nil
		case xml.CharData:
			if len(bytes.TrimSpace(token)) > 0 {
				return nil, malformed("the envelope has text where elements belong")
			}
		}
	}
}

func (t *tokens) skip() error {
	for depth := 1; depth > 0; {
		token, err := t.next()
		if err != nil {
			return err
		}
		switch token.(type) {
		case xml.StartElement:
			depth++
		case xml.EndElement:
			depth--
		}
	}
	return nil
}

// Decode reads an envelope. find gives a pointer to the struct for the body's element, or nil for an operation that is not there.
func Decode(from io.Reader, find func(operation string) any) (operation string, err error) {
	read := &tagged{Reader: bufio.NewReader(&limited{from, MaximumEnvelope})}
	t := &tokens{Decoder: xml.NewDecoder(read), bytes: read}
	t.CharsetReader = func(charset string, input io.Reader) (io.Reader, error) {
		return nil, malformed("the envelope's encoding is not UTF-8")
	}
	envelope, err := t.nextElement()
	if err != nil {
		return "", err
	}
	if envelope == nil || envelope.Name.Local != "Envelope" {
		return "", malformed("the request is not a SOAP envelope")
	}
	if envelope.Name.Space != EnvelopeNamespace {
		return "", &FormatError{FaultVersion, "the envelope is not of SOAP 1.1"}
	}
	part, err := t.nextElement()
	if err != nil {
		return "", err
	}
	if part != nil && part.Name == (xml.Name{Space: EnvelopeNamespace, Local: "Header"}) {
		if err := t.header(); err != nil {
			return "", err
		}
		if part, err = t.nextElement(); err != nil {
			return "", err
		}
	}
	if part == nil || part.Name != (xml.Name{Space: EnvelopeNamespace, Local: "Body"}) {
		return "", malformed("the envelope has no body")
	}
	body, err := t.nextElement()
	if err != nil {
		return "", err
	}
	if body == nil {
		return "", malformed("the body is empty")
	}
	var message any
	if body.Name.Space == DeployNamespace {
		message = find(body.Name.Local)
	}
	if message == nil {
		return "", malformed("there is no operation %s", name(body.Name))
	}
	if err := t.structure(body.Name.Local, reflect.ValueOf(message).Elem()); err != nil {
		return "", err
	}
	// The end of the body and of the envelope; what is read to here decides, as BP 1.1 allows one element only.
	for range 2 {
		more, err := t.nextElement()
		if err != nil {
			return "", err
		}
		if more != nil {
			return "", malformed("the envelope has %s where it should end", name(more.Name))
		}
	}
	return body.Name.Local, nil
}

// header skips the header's blocks; none is known here, so one that must be understood is a fault.
func (t *tokens) header() error {
	for {
		block, err := t.nextElement()
		if err != nil || block == nil {
			return err
		}
		for _, a := range block.Attr {
			if a.Name == (xml.Name{Space: EnvelopeNamespace, Local: "mustUnderstand"}) && (a.Value == "1" || a.Value == "true") {
				return &FormatError{FaultMustUnderstand, "the header " + name(block.Name) + " is not understood"}
			}
		}
		if err := t.skip(); err != nil {
			return err
		}
	}
}

// structure reads the children of an element, whose start has been read, into a struct.
func (t *tokens) structure(parent string, into reflect.Value) error {
	seen := make([]bool, into.NumField())
	for {
		start, err := t.nextElement()
		if err != nil {
			return err
		}
		if start == nil {
			break
		}
		index, ok := into.Type().FieldByName(start.Name.Local)
		if start.Name.Space != DeployNamespace || !ok {
			return malformed("%s has no element %s", parent, name(start.Name))
		}
		i := index.Index[0]
		field := into.Field(i)
		if seen[i] && field.Kind() != reflect.Slice {
			return malformed("%s has %s twice", parent, start.Name.Local)
		}
		seen[i] = true
		if isNil(start) {
			if field.Kind() != reflect.Pointer {
				return malformed("%s in %s is nil", start.Name.Local, parent)
			}
			if err := t.skip(); err != nil {
				return err
			}
			continue
		}
		target := field
		switch {
		case field.Kind() == reflect.Pointer:
			field.Set(reflect.New(field.Type().Elem()))
			target = field.Elem()
		case field.Kind() == reflect.Slice && field.Type() != reflect.TypeFor[Hex]():
			field.Grow(1)
			field.SetLen(field.Len() + 1)
			target = field.Index(field.Len() - 1)
		}
		if err := t.value(start.Name.Local, target); err != nil {
			return err
		}
	}
	for i, was := range seen {
		field := into.Type().Field(i)
		if !was && field.Type.Kind() != reflect.Pointer && (field.Type.Kind() != reflect.Slice || field.Type == reflect.TypeFor[Hex]()) {
			return malformed("%s has no %s", parent, field.Name)
		}
	}
	return nil
}

func isNil(start *xml.StartElement) bool {
	for _, a := range start.Attr {
		if a.Name == (xml.Name{Space: schemaInstance, Local: "nil"}) && (a.Value == "1" || a.Value == "true") {
			return true
		}
	}
	return false
}

func (t *tokens) value(element string, into reflect.Value) error {
	if received, ok := into.Addr().Interface().(*Received); ok {
		return t.received(element, received)
	}
	if into.Kind() == reflect.Struct {
		return t.structure(element, into)
	}
	raw, err := t.text(element)
	if err != nil {
		return err
	}
	text := string(raw)
	wrong := func() error { return malformed("%s has a malformed value", element) } // the value may be private: not shown
	switch target := into.Addr().Interface().(type) {
	case *string:
		*target = text
	case *bool:
		switch strings.TrimSpace(text) {
		case "true", "1":
			*target = true
		case "false", "0":
			*target = false
		default:
			return wrong()
		}
	case *int64:
		if *target, err = strconv.ParseInt(strings.TrimSpace(text), 10, 64); err != nil {
			return wrong()
		}
	case *float64:
		if *target, err = strconv.ParseFloat(strings.TrimSpace(text), 64); err != nil || math.IsNaN(*target) || math.IsInf(*target, 0) {
			return wrong()
		}
	case *Hex:
		if *target, err = hex.DecodeString(strings.TrimSpace(text)); err != nil {
			return wrong()
		}
	default:
		panic("soap: no mapping for " + into.Type().String()) // a mistake in a message struct: a test meets it
	}
	return nil
}

// text reads an element's text to its end.
func (t *tokens) text(element string) ([]byte, error) {
	var text []byte
	for {
		token, err := t.next()
		if err != nil {
			return nil, err
		}
		switch token := token.(type) {
		case xml.CharData:
			if text == nil {
				text = bytes.Clone(token)
			} else {
				text = append(text, token...)
			}
		case xml.EndElement:
			return text, nil
		case xml.StartElement:
			return nil, malformed("%s has an element inside", element)
		}
	}
}

// received reads base64 text or an xop:Include.
func (t *tokens) received(element string, into *Received) error {
	var text []byte
	for {
		token, err := t.next()
		if err != nil {
			return err
		}
		switch token := token.(type) {
		case xml.CharData:
			text = append(text, token...)
		case xml.StartElement:
			if token.Name != (xml.Name{Space: xopNamespace, Local: "Include"}) || into.ContentID != "" {
				return malformed("%s has an element inside", element)
			}
			for _, a := range token.Attr {
				if a.Name == (xml.Name{Local: "href"}) {
					if into.ContentID, err = contentID(a.Value); err != nil {
						return malformed("%s has a malformed href", element)
					}
				}
			}
			if into.ContentID == "" {
				return malformed("%s has an xop:Include without href", element)
			}
			if err := t.skip(); err != nil {
				return err
			}
		case xml.EndElement:
			if into.ContentID != "" {
				if len(bytes.TrimSpace(text)) > 0 {
					return malformed("%s has both text and an xop:Include", element)
				}
				return nil
			}
			// base64Binary may be broken over lines anywhere; the decoder skips line ends but no spaces.
			text = bytes.Map(func(r rune) rune {
				if r == ' ' || r == '\t' {
					return -1
				}
				return r
			}, text)
			n, err := base64.StdEncoding.Decode(text, text)
			if err != nil {
				return malformed("%s is not base64", element)
			}
			into.Inline = text[:n]
			return nil
		}
	}
}

// contentID gives the content id that a cid: URL names (RFC 2392).
func contentID(href string) (string, error) {
	rest, ok := strings.CutPrefix(href, "cid:")
	if !ok || rest == "" {
		return "", errors.New("not a cid: URL")
	}
	return url.PathUnescape(rest)
}

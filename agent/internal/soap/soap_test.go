package soap

import (
	"bytes"
	"encoding/base64"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"sojourn.example/agent/internal/catalogue"
)

type inner struct {
	Name  string
	Value string
}

type message struct {
	Text     string
	Flag     *bool
	Count    *int64
	Seconds  *float64
	Words    []string
	Inner    []inner
	Data     *Received
	Checksum *Received
}

func envelope(body string) string {
	return `<?xml version="1.0" encoding="UTF-8"?><s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/" xmlns:t="urn:sojourn:deploy:1">` +
		`<s:Body>` + body + `</s:Body></s:Envelope>`
}

func decode(t *testing.T, text string) (*message, error) {
	t.Helper()
	m := &message{}
	read := func(from io.Reader) (string, error) {
		*m = message{}
		return Decode(from, func(operation string) any {
			if operation == "Do" {
				return m
			}
			return nil
		})
	}
	_, err := read(iotest.OneByteReader(strings.NewReader(text)))
	_, whole := read(strings.NewReader(text))
	if (err == nil) != (whole == nil) {
		t.Errorf("read byte by byte: %v, at once: %v", err, whole)
	}
	return m, err
}

func TestDecode(t *testing.T) {
	m, err := decode(t, envelope(` <t:Do> <t:Text> a &amp;&#13;
b </t:Text><t:Flag> 1 </t:Flag><t:Count>
 -7</t:Count><t:Seconds>1.5e3</t:Seconds><t:Words>x</t:Words><t:Words/><t:Inner><t:Name>n</t:Name><t:Value>v</t:Value></t:Inner>`+
		`<t:Data> aGVs
 bG8= </t:Data><Checksum xmlns="urn:sojourn:deploy:1"><i:Include xmlns:i="http://www.w3.org/2004/08/xop/include" href="cid:a%40b"/></Checksum></t:Do>`))
	if err != nil {
		t.Fatal(err)
	}
	if m.Text != " a &\r\nb " || !*m.Flag || *m.Count != -7 || *m.Seconds != 1500 {
		t.Errorf("%+v", m)
	}
	if len(m.Words) != 2 || m.Words[0] != "x" || m.Words[1] != "" || len(m.Inner) != 1 || m.Inner[0] != (inner{"n", "v"}) {
		t.Errorf("%+v", m)
	}
	if string(m.Data.Inline) != "hello" || m.Checksum.ContentID != "a@b" {
		t.Errorf("%+v %+v", m.Data, m.Checksum)
	}
}

func TestNilAndHeaderAreSkipped(t *testing.T) {
	text := strings.Replace(envelope(`<t:Do><t:Text/><t:Count xmlns:x="http://www.w3.org/2001/XMLSchema-instance" x:nil="true"/></t:Do>`),
		"<s:Body>", `<s:Header><x:y xmlns:x="urn:x" s:mustUnderstand="0"><z/></x:y></s:Header><s:Body>`, 1)
	m, err := decode(t, text)
	if err != nil || m.Count != nil {
		t.Error(m, err)
	}
}

func TestRefused(t *testing.T) {
	must := strings.Replace(envelope(`<t:Do><t:Text/></t:Do>`), "<s:Body>",
		`<s:Header><x:y xmlns:x="urn:x" s:mustUnderstand="1"/></s:Header><s:Body>`, 1)
	cases := map[string]struct{ text, code, detail string }{
		"nothing":          {"", FaultClient, "well-formed"},
		"not XML":          {"hello", FaultClient, "text where elements belong"},
		"cut":              {envelope(`<t:Do><t:Text>`)[:160], FaultClient, "well-formed"},
		"SOAP 1.2":         {strings.ReplaceAll(envelope(""), "http://schemas.xmlsoap.org/soap/envelope/", "http://www.w3.org/2003/05/soap-envelope"), FaultVersion, "SOAP 1.1"},
		"must understand":  {must, FaultMustUnderstand, "{urn:x}y"},
		"empty body":       {envelope(""), FaultClient, "empty"},
		"unknown":          {envelope(`<t:Dont/>`), FaultClient, "no operation"},
		"other namespace":  {envelope(`<Do/>`), FaultClient, "no operation"},
		"two":              {envelope(`<t:Do><t:Text/></t:Do><t:Do/>`), FaultClient, "should end"},
		"missing":          {envelope(`<t:Do/>`), FaultClient, "no Text"},
		"twice":            {envelope(`<t:Do><t:Text/><t:Text/></t:Do>`), FaultClient, "twice"},
		"unknown element":  {envelope(`<t:Do><t:Text/><t:Other/></t:Do>`), FaultClient, "no element"},
		"wrong namespace":  {envelope(`<t:Do><Text/></t:Do>`), FaultClient, "no element"},
		"element in text":  {envelope(`<t:Do><t:Text><b/></t:Text></t:Do>`), FaultClient, "element inside"},
		"bad boolean":      {envelope(`<t:Do><t:Text/><t:Flag>yes</t:Flag></t:Do>`), FaultClient, "Flag has a malformed value"},
		"bad number":       {envelope(`<t:Do><t:Text/><t:Count>1.5</t:Count></t:Do>`), FaultClient, "Count has a malformed value"},
		"not a number":     {envelope(`<t:Do><t:Text/><t:Seconds>NaN</t:Seconds></t:Do>`), FaultClient, "Seconds has a malformed value"},
		"bad base64":       {envelope(`<t:Do><t:Text/><t:Data>!</t:Data></t:Do>`), FaultClient, "not base64"},
		"two includes":     {envelope(`<t:Do><t:Text/><t:Data><i:Include xmlns:i="http://www.w3.org/2004/08/xop/include" href="cid:a"/><i:Include xmlns:i="http://www.w3.org/2004/08/xop/include" href="cid:a"/></t:Data></t:Do>`), FaultClient, "element inside"},
		"include of a URL": {envelope(`<t:Do><t:Text/><t:Data><i:Include xmlns:i="http://www.w3.org/2004/08/xop/include" href="http://x/"/></t:Data></t:Do>`), FaultClient, "malformed href"},
		"document type":    {`<!DOCTYPE x [<!ENTITY a "b">]>` + envelope(`<t:Do><t:Text>&a;</t:Text></t:Do>`), FaultClient, "document type"},
		"entity":           {envelope(`<t:Do><t:Text>&a;</t:Text></t:Do>`), FaultClient, "well-formed"},
		"instruction":      {envelope(`<?php x?><t:Do><t:Text/></t:Do>`), FaultClient, "processing instruction"},
		"other encoding":   {strings.Replace(envelope(`<t:Do><t:Text/></t:Do>`), "UTF-8", "UTF-7", 1), FaultClient, "UTF-8"},
		"deep":             {envelope(strings.Repeat("<t:Do>", 100)), FaultClient, "no element"},
		"deep in a header": {strings.Replace(envelope(""), "<s:Body>", "<s:Header>"+strings.Repeat("<x>", 100), 1), FaultClient, "too many elements"},
		"many":             {envelope(`<t:Do><t:Text/>` + strings.Repeat("<t:Words/>", MaximumElements) + `</t:Do>`), FaultClient, "too many elements"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			_, err := decode(t, c.text)
			format, ok := errors.AsType[*FormatError](err)
			if !ok {
				t.Fatalf("got %v", err)
			}
			if format.FaultCode != c.code || !strings.Contains(format.Detail, c.detail) {
				t.Errorf("got %s: %s", format.FaultCode, format.Detail)
			}
		})
	}
}

func TestEnvelopeIsBounded(t *testing.T) {
	endless := io.MultiReader(strings.NewReader(`<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body><t:Do xmlns:t="urn:sojourn:deploy:1"><t:Text>`), zeros{})
	_, err := Decode(endless, func(string) any { return &message{} })
	if err == nil || !strings.Contains(err.Error(), "longer than") {
		t.Error(err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = '0'
	}
	return len(p), nil
}

type answer struct {
	Text     string
	When     time.Time
	Hash     Hex
	Missing  *string
	Count    int64
	Data     Payload
	Checksum Payload
}

func TestEncode(t *testing.T) {
	order := ""
	payload := func(name, text string) Payload {
		return Payload{Write: func(to io.Writer) error { order += name; _, err := io.WriteString(to, text); return err }}
	}
	m := &answer{Text: "<&\r\n\x01", When: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Hash: Hex{0xab}, Count: 1 << 40,
		Data: payload("d", "hello"), Checksum: payload("c", "x")}
	var out bytes.Buffer
	if err := Encode("DoResponse", m, false).WriteInline(&out); err != nil {
		t.Fatal(err)
	}
	want := `<t:DoResponse xmlns:t="urn:sojourn:deploy:1"><t:Text>&lt;&amp;&#xD;&#xA;` + "\uFFFD" + `</t:Text><t:When>2026-01-02T03:04:05Z</t:When><t:Hash>ab</t:Hash>` +
		`<t:Count>1099511627776</t:Count><t:Data>` + base64.StdEncoding.EncodeToString([]byte("hello")) + `</t:Data><t:Checksum>eA==</t:Checksum></t:DoResponse>`
	if !strings.Contains(out.String(), want) {
		t.Errorf("got %s\nwant %s", out.String(), want)
	}
	if order != "dc" {
		t.Errorf("payloads were written in the order %s", order)
	}
	out.Reset()
	a := Encode("DoResponse", m, true)
	if err := a.WriteRoot(&out); err != nil || len(a.Payloads()) != 2 {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), `<t:Data><xop:Include xmlns:xop="http://www.w3.org/2004/08/xop/include" href="cid:1@sojourn.deploy"/></t:Data>`) {
		t.Error(out.String())
	}
}

func TestFault(t *testing.T) {
	text := string(Fault(FaultServer, catalogue.New("SD-702", "user", "<x>")))
	for _, want := range []string{"<faultcode>s:Server</faultcode>", "&lt;x&gt;", `<detail><t:Fault xmlns:t="urn:sojourn:deploy:1"><t:Code>SD-702</t:Code><t:Sentence>`} {
		if !strings.Contains(text, want) {
			t.Errorf("%s is not in %s", want, text)
		}
	}
	// SOAP 1.1, 4.4: faults about the header have no detail.
	if strings.Contains(string(Fault(FaultMustUnderstand, catalogue.New("SD-504", "detail", "x"))), "<detail>") {
		t.Error("a fault about the header has a detail")
	}
}

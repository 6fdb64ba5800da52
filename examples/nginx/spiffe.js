// The SPIFFE ID of the client certificate that nginx has verified, as the variable of `js_set`: empty if the certificate is
// not an X509-SVID. It reads the certificate's DER to the bit, and refuses what is not as RFC 5280 and the SPIFFE X509-SVID
// standard have it, instead of looking for something that resembles a SPIFFE ID.

// An SVID has about a kilobyte; this is far more than TLS clients send.
const CERTIFICATE_BYTES_MAX = 65536;
// The longest SPIFFE ID and trust domain name that the standard allows.
const ID_BYTES_MAX = 2048;
const TRUST_DOMAIN_BYTES_MAX = 255;

const BEGIN = '-----BEGIN CERTIFICATE-----';
const END = '-----END CERTIFICATE-----';
const BASE64 = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=';
const DIGITS = '0123456789';
const LOWER = 'abcdefghijklmnopqrstuvwxyz';
const TRUST_DOMAIN = LOWER + DIGITS + '.-_';
const SEGMENT = LOWER + LOWER.toUpperCase() + DIGITS + '.-_';

// Tags of DER.
const BOOLEAN = 0x01, INTEGER = 0x02, BIT_STRING = 0x03, OCTET_STRING = 0x04, OBJECT = 0x06, SEQUENCE = 0x30;
const VERSION = 0xa0, EXTENSIONS = 0xa3, NAME_URI = 0x86;
// Extensions, as the hexadecimal digits of their identifiers.
const SUBJECT_ALT_NAME = '551d11', BASIC_CONSTRAINTS = '551d13', KEY_USAGE = '551d0f';
// Bits of the first byte of a key usage.
const DIGITAL_SIGNATURE = 0x80, CERT_SIGN = 0x04, CRL_SIGN = 0x02;

function id(r) {
    const text = r.variables.ssl_client_raw_cert;
    if (!text) {
        return '';
    }
    try {
        return spiffeId(decode(text));
    } catch (error) {
        r.warn('the client certificate is no X509-SVID: ' + error.message);
        return '';
    }
}

function check(holds, what) {
    if (!holds) {
        throw new Error(what);
    }
}

function consistsOf(text, characters) {
    for (let i = 0; i < text.length; i++) {
        if (characters.indexOf(text[i]) < 0) {
            return false;
        }
    }
    return true;
}

function decode(text) {
    check(text.length <= 2 * CERTIFICATE_BYTES_MAX, 'it is too long');
    const lines = text.trim().split('\n');
    check(lines.length > 2 && lines[0] === BEGIN && lines[lines.length - 1] === END, 'it is not one PEM block');
    const body = lines.slice(1, -1).join('');
    check(body.length % 4 === 0 && consistsOf(body, BASE64), 'it is not base64');
    return Buffer.from(body, 'base64');
}

// The element of DER that begins here; it must end within its parent.
function element(der, at, end) {
    check(at + 2 <= end, 'an element is cut off');
    const tag = der[at];
    check((tag & 0x1f) !== 0x1f, 'a tag has more than one byte');
    let length = der[at + 1];
    let start = at + 2;
    if (length >= 0x80) {
        const bytes = length - 0x80;
        check(bytes >= 1 && bytes <= 3 && start + bytes <= end, 'a length is not of DER');
        length = 0;
        for (let i = 0; i < bytes; i++) {
            length = length * 256 + der[start + i];
        }
        check(length >= 0x80 && length >= Math.pow(256, bytes - 1), 'a length is not the shortest');
        start += bytes;
    }
    check(start + length <= end, 'an element is longer than its parent');
    return {tag: tag, start: start, end: start + length};
}

// The one element that begins here, with this tag and nothing after it.
function only(der, tag, start, end) {
    const found = element(der, start, end);
    check(found.tag === tag && found.end === end, 'an element is not the one expected');
    return found;
}

function children(der, parent) {
    const found = [];
    for (let at = parent.start; at < parent.end;) {
        const child = element(der, at, parent.end);
        found.push(child);
        at = child.end;
    }
    return found;
}

function bytes(der, part) {
    return der.slice(part.start, part.end);
}

// The extensions of a certificate: their values by their identifiers.
function extensions(der) {
    const certificate = children(der, only(der, SEQUENCE, 0, der.length));
    check(certificate.length === 3 && certificate[0].tag === SEQUENCE, 'it is not a certificate');
    const fields = children(der, certificate[0]);
    const last = fields[fields.length - 1];
    // Version, serial number, algorithm, issuer, validity, subject, key, and extensions at the end.
    check(fields.length >= 8 && fields[0].tag === VERSION && fields[1].tag === INTEGER, 'it has no version');
    check(last.tag === EXTENSIONS, 'it has no extensions');
    const found = {};
    children(der, only(der, SEQUENCE, last.start, last.end)).forEach(function (extension) {
        check(extension.tag === SEQUENCE, 'an extension is malformed');
        const parts = children(der, extension);
        const value = parts[parts.length - 1];
        check(parts.length === 2 || parts.length === 3 && parts[1].tag === BOOLEAN, 'an extension is malformed');
        check(parts[0].tag === OBJECT && value.tag === OCTET_STRING, 'an extension is malformed');
        const name = bytes(der, parts[0]).toString('hex');
        check(found[name] === undefined, 'an extension is there twice');
        found[name] = value;
    });
    return found;
}

function spiffeId(der) {
    check(der.length <= CERTIFICATE_BYTES_MAX, 'it is too long');
    const found = extensions(der);

    const constraints = found[BASIC_CONSTRAINTS];
    if (constraints) {
        const first = children(der, only(der, SEQUENCE, constraints.start, constraints.end))[0];
        check(!first || first.tag !== BOOLEAN, 'it is of an authority');
    }
    const usage = found[KEY_USAGE];
    check(usage, 'it has no key usage');
    const bits = only(der, BIT_STRING, usage.start, usage.end);
    // The first byte says how many bits of the last are unused.
    check(bits.end - bits.start >= 2, 'its key usage is empty');
    const used = der[bits.start + 1];
    check((used & DIGITAL_SIGNATURE) !== 0 && (used & (CERT_SIGN | CRL_SIGN)) === 0, 'its key usage is of another kind');

    const names = found[SUBJECT_ALT_NAME];
    check(names, 'it has no subject alternative name');
    const uris = children(der, only(der, SEQUENCE, names.start, names.end)).filter(function (name) {
        return name.tag === NAME_URI;
    });
    check(uris.length === 1, 'it has not exactly one URI');
    check(uris[0].end - uris[0].start <= ID_BYTES_MAX, 'its URI is too long');
    let uri = '';
    bytes(der, uris[0]).forEach(function (byte) {
        // What is not ASCII is in no set of characters below.
        uri += String.fromCharCode(byte);
    });
    checkId(uri);
    return uri;
}

function checkId(uri) {
    const parts = uri.split('/');
    check(parts.length >= 4 && parts[0] === 'spiffe:' && parts[1] === '', 'its URI is no SPIFFE ID of a workload');
    const domain = parts[2];
    check(domain.length >= 1 && domain.length <= TRUST_DOMAIN_BYTES_MAX && consistsOf(domain, TRUST_DOMAIN), 'its trust domain is malformed');
    parts.slice(3).forEach(function (segment) {
        check(segment !== '' && segment !== '.' && segment !== '..' && consistsOf(segment, SEGMENT), 'its path is malformed');
    });
}

export default {id};

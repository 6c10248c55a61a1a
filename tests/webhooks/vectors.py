"""
Requests as providers sign them: from their documents, or made by their own libraries.

The libraries that are too large to install for the tests were run once; each vector says which one,
and what was called.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Vector:
    """
    A request, and the secret that it verifies with.

    Attributes:
        origin: Where it is from.
        at_s: When it was signed.
        remade: What signs is what verifies, so postroom.testing.signed makes the same header.
    """

    scheme: str
    origin: str
    secret: str
    headers: dict[str, str]
    body: bytes
    at_s: float = 1_700_000_000
    url: str = "https://hooks.example.com/webhooks/x"
    remade: bool = True
    event_id: str | None = None
    event_type: str | None = None


SLACK_BODY = (
    b"token=xyzz0WbapA4vBCDEFasx0q6G&team_id=T1DC2JH3J&team_domain=testteamnow&channel_id=G8PSS9T3V"
    b"&channel_name=foobar&user_id=U2CERLKJA&user_name=roadrunner&command=%2Fwebhook-collect&text="
    b"&response_url=https%3A%2F%2Fhooks.slack.com%2Fcommands%2FT1DC2JH3J%2F397700885554"
    b"%2F96rGlfmibIGlgcZRskXaIFfN&trigger_id=398738663015.47445629121.803a0bc887a14d10d2c447fce8b6703c"
)
TWILIO_FORM = (
    b"Digits=1234&To=%2B18005551212&From=%2B14158675309&Caller=%2B14158675309&CallSid=CA1234567890ABCDE"
)
ADYEN_KEY = "44782DEF547AAA06C910C43932B1EB0C71FC68D9D0C057550C48EC2ACF6BA056"
ADYEN_BODY = (
    b'{"live":"false","notificationItems":[{"NotificationRequestItem":{"additionalData":{"hmacSignature":'
    b'"coqCmt/IZ4E3CzPvMY8zTjQVL5hYJUiBRg8UU+iCWo0="},"amount":{"value":1130,"currency":"EUR"},'
    b'"pspReference":"7914073381342284","eventCode":"AUTHORISATION","merchantAccountCode":"TestMerchant",'
    b'"merchantReference":"TestPayment-1407325143704","paymentMethod":"visa","success":"true"}}]}'
)
SENDGRID_BODY = (
    b'[{"email":"hello@world.com","event":"dropped","reason":"Bounced Address",'
    b'"sg_event_id":"ZHJvcC0xMDk5NDkxOS1MUnpYbF9OSFN0T0doUTRrb2ZTbV9BLTA",'
    b'"sg_message_id":"LRzXl_NHStOGhQ4kofSm_A.filterdrecv-p3mdw1-756b745b58-kmzbl-18-5F5FC76C-9.0",'
    b'"smtp-id":"<LRzXl_NHStOGhQ4kofSm_A@ismtpd0039p1iad1.sendgrid.net>","timestamp":1600112492}]\r\n'
)
STANDARD_HEADERS = {
    "id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
    "timestamp": "1614265330",
    "signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
}

VECTORS = [
    Vector(
        "stripe",
        "stripe 16.1.0: WebhookSignature._compute_signature",
        "whsec_abc",
        {
            "Stripe-Signature": "t=1700000000,"
            "v1=8e592cdd14d5abcfca2d98925d5b89177aa4331a92facc0e96493db4f54fa0a5"
        },
        b'{"id":"evt_1","object":"event"}',
        event_id="evt_1",
    ),
    Vector(
        "github",
        "docs.github.com: Testing the webhook payload validation",
        "It's a Secret to Everybody",
        {
            "X-GitHub-Delivery": "72d3162e",
            "X-GitHub-Event": "push",
            "X-Hub-Signature-256": "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17",
        },
        b"Hello, World!",
        event_id="72d3162e",
        event_type="push",
    ),
    Vector(
        "slack",
        "docs.slack.dev: Verifying requests from Slack",
        "8f742231b10e8888abcd99yyyzzz85a5",
        {
            "X-Slack-Request-Timestamp": "1531420618",
            "X-Slack-Signature": "v0=a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503",
        },
        SLACK_BODY,
        at_s=1531420618,
        event_type="/webhook-collect",
    ),
    Vector(
        "svix",
        "docs.svix.com: How to verify webhooks manually",
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        {f"svix-{name}": value for name, value in STANDARD_HEADERS.items()},
        b'{"test": 2432232314}',
        at_s=1614265330,
        event_id="msg_p5jXN8AQM9LWM0D4loKWxJek",
    ),
    Vector(
        "standard-webhooks",
        "the same with the names of Standard Webhooks",
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        {f"webhook-{name}": value for name, value in STANDARD_HEADERS.items()},
        b'{"test": 2432232314}',
        at_s=1614265330,
        event_id="msg_p5jXN8AQM9LWM0D4loKWxJek",
    ),
    Vector(
        "resend",
        "docs.svix.com, by which Resend sends",
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        {f"svix-{name}": value for name, value in STANDARD_HEADERS.items()},
        b'{"test": 2432232314}',
        at_s=1614265330,
        event_id="msg_p5jXN8AQM9LWM0D4loKWxJek",
    ),
    Vector(
        "twilio",
        "twilio.com/docs/usage/security: a form",
        "12345",
        {"X-Twilio-Signature": "RSOYDt4T1cUTdK1PDd93/VVr8B8="},
        TWILIO_FORM,
        url="https://mycompany.com/myapp.php?foo=1&bar=2",
    ),
    Vector(
        "twilio",
        "the tests of twilio's library: a JSON body",
        "12345",
        {"X-Twilio-Signature": "a9nBmqA0ju/hNViExpshrM61xv4="},
        b'{"property": "value", "boolean": true}',
        url="https://mycompany.com/myapp.php?foo=1&bar=2"
        "&bodySHA256=0a1ff7634d9ab3b95db5c9a2dfe9416e41502b283a80c7cf19632632f96e6620",
    ),
    Vector(
        "twilio",
        "twilio 9.13.0: RequestValidator.compute_signature with HMAC_SHA256",
        "12345",
        {
            "X-Twilio-Signature": "033hgUJA9M/hXIZsYjwkerEP/DBm35nEri5FhCYjA5s=",
            "X-Twilio-Webhooks-Signature-Settings": "key=webhooks_sharedkey_1,algorithm=HMAC_SHA256",
        },
        TWILIO_FORM,
        url="https://mycompany.com/myapp.php?foo=1&bar=2",
    ),
    Vector(
        "adyen",
        "docs.adyen.com: Verify HMAC signatures",
        ADYEN_KEY,
        {},
        ADYEN_BODY,
        event_id="7914073381342284:AUTHORISATION:true",
        event_type="AUTHORISATION",
    ),
    Vector(
        "adyen",
        "Adyen 16.0.0: generate_payload_sig",
        ADYEN_KEY,
        {"HmacSignature": "VS9UBuuLlvIa/EUWFcATyXQOV4Myf4jqvgMKXg+qUqk="},
        b'{"type":"balancePlatform.accountHolder.created"}',
        event_type="balancePlatform.accountHolder.created",
    ),
    Vector(
        "line",
        "developers.line.biz: Verify webhook signature",
        "8c570fa6dd201bb328f1c1eac23a96d8",
        {"X-Line-Signature": "GhRKmvmHys4Pi8DxkF4+EayaH0OqtJtaZxgTD9fMDLs="},
        b'{"destination":"U8e742f61d673b39c7fff3cecb7536ef0","events":[]}',
    ),
    Vector(
        "sendgrid",
        "the tests of sendgrid's library",
        "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE83T4O/n84iotIvIW4mdBgQ/7dAfSmpqIM8kF9mN1flpVKS3GRqe62gw+2fNNRaIN"
        "XvVpiglSI8eNEc6wEA3F+g==",
        {
            "X-Twilio-Email-Event-Webhook-Signature": "MEUCIGHQVtGj+Y3LkG9fLcxf3qfI10QysgDWmMOVmxG0u6ZU"
            "AiEAyBiXDWzM+uOe5W0JuG+luQAbPIqHh89M15TluLtEZtM=",
            "X-Twilio-Email-Event-Webhook-Timestamp": "1600112502",
        },
        SENDGRID_BODY,
        at_s=1600112502,
        remade=False,
        event_id="ZHJvcC0xMDk5NDkxOS1MUnpYbF9OSFN0T0doUTRrb2ZTbV9BLTA",
        event_type="dropped",
    ),
    Vector(
        "hubspot",
        "hubspot-api-client 12.0.0: Signature.get_signature, v3, of the address with @ for %40",
        "3b2b4c8a-client-secret",
        {
            "X-HubSpot-Request-Timestamp": "1700000000000",
            "X-HubSpot-Signature-v3": "9l7WLFWNHgc4DEEfATyZ9lFSK00H62kLEOJuSoFZeAk=",
        },
        '[{"eventId":100,"subscriptionType":"contact.propertyChange","objectId":4,"propertyValue":"Zoë",'
        '"attemptNumber":0}]'.encode(),
        url="https://hooks.example.com/webhooks/hubspot?who=a%40b",
        event_id='{"eventId": 100, "objectId": 4, "propertyValue": "Zo\\u00eb", '
        '"subscriptionType": "contact.propertyChange"}',
        event_type="contact.propertyChange",
    ),
    Vector(
        "square",
        "squareup 46.0.0: webhooks_helper.verify_signature takes it",
        "sigkey-e1ae9e-key",
        {"x-square-hmacsha256-signature": "zADEnkWsKrP76Xy/Yd+Sa7a1yPEOS4Gdo/Y7p7biWfQ="},
        '{"merchant_id":"6SSW7HV8K2ST5","type":"customer.created","event_id":'
        '"df5f3813-a913-45a1-94e9-fdc3f7d5e3b6","data":{"note":"Café"}}'.encode(),
        url="https://hooks.example.com/webhooks/square",
        event_id="df5f3813-a913-45a1-94e9-fdc3f7d5e3b6",
        event_type="customer.created",
    ),
    Vector(
        "paddle",
        "paddle-python-sdk 1.16.1: PaddleSignature.calculate_hmac",
        "pdl_ntfset_01hv8x1_secret",
        {
            "Paddle-Signature": "ts=1700000000;"
            "h1=11aa083ba19b0822d36b0d35c0f34cea49e03f32ad5a31099c985667a7a240fb"
        },
        '{"event_id":"evt_01hv8x2acma2gz7he8kg2s0hna","event_type":"transaction.completed",'
        '"data":{"name":"Zoë  \\/ 1"}}'.encode(),
        event_id="evt_01hv8x2acma2gz7he8kg2s0hna",
        event_type="transaction.completed",
    ),
]

// The reference: Swagger UI over /openapi.json, from files that are served here.

SwaggerUIBundle({ url: "/openapi.json", dom_id: "#swagger-ui", deepLinking: true, validatorUrl: null });
